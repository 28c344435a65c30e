"""CPU seconds that commands take before and beside their work, as multiples of `import torch`.

python -m benchmarks.clock [--rounds 7]

Whole processes are measured, by the user and system time the kernel counts for each, so that a machine that does other
things as well stretches nothing; they take turns, so that one that slows down slows all. The package measured is the
one that PYTHONPATH names:

PYTHONPATH=OTHER_CHECKOUT/src python -m benchmarks.clock
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import ROOT, Spread, aligned, json_line, machine, revision, say, spread

BASELINE = "import torch"
# One thread, lest those that wait for work are counted as work.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

# A network of timm's own tests and a small photo: what it computes is next to nothing beside the imports.
_PREPARE = """
import sys
from pathlib import Path
from PIL import Image
from deformable_detr import DeformableDETRConfig, Preprocessing
from deformable_detr.models import build
from deformable_detr.weights.checkpoint import Checkpoint, save

folder = Path(sys.argv[1])
config = DeformableDETRConfig(num_classes=3, variant="two_stage", backbone="test_resnet", backbone_weights="none",
    frozen_stages=0, frozen_batch_norm=False, hidden_dim=32, num_heads=2, encoder_layers=1, decoder_layers=1,
    ffn_dim=48, num_queries=11)
save(Checkpoint(weights=build(config).state_dict(), model=config, classes=("disc", "square", "star"),
    category_ids=(1, 2, 3), preprocessing=Preprocessing(short_side=64, max_side=128)), folder / "tiny.safetensors")
Image.new("RGB", (96, 64), (40, 90, 120)).save(folder / "one.png")
(folder / "empty").mkdir()
"""


class Process(NamedTuple):
    """Arguments of a Python process, and the exit code it must end with."""

    arguments: tuple[str, ...]
    code: int = 0


def processes(folder: Path) -> dict[str, Process]:
    """Processes by the name they have in the table; `folder` holds what they look at."""
    empty, image, weights, missing = (
        str(folder / name) for name in ("empty", "one.png", "tiny.safetensors", "missing.safetensors")
    )

    def ddetr(*arguments: str, code: int = 1) -> Process:
        return Process(("-m", "deformable_detr.cli", *arguments), code)

    return {
        BASELINE: Process(("-c", "import torch")),
        "import torch, torchvision.ops, timm": Process(("-c", "import torch, torchvision.ops, timm")),
        "import deformable_detr": Process(("-c", "import deformable_detr")),
        "import deformable_detr.ops": Process(("-c", "import deformable_detr.ops")),
        "ddetr --version": ddetr("--version", code=0),
        "ddetr check-data EMPTY": ddetr("check-data", empty),
        "ddetr train --data EMPTY": ddetr("train", "--data", empty),
        "ddetr train --data EMPTY --weights MISSING": ddetr("train", "--data", empty, "--weights", missing),
        "ddetr eval MISSING --data EMPTY": ddetr("eval", missing, "--data", empty),
        "ddetr predict MISSING IMAGE": ddetr("predict", missing, image),
        "ddetr predict WEIGHTS IMAGE": ddetr("predict", weights, image, "--device", "cpu", code=0),
    }


def cpu_seconds(process: Process) -> float:
    """User and system time of one process and of those it has waited for.

    Raises:
        RuntimeError: it ends otherwise than it should, with what it said.
    """
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(
            [sys.executable, *process.arguments],
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **_ENVIRONMENT},
        )
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode != process.code:
            said.seek(0)
            raise RuntimeError(
                f"{' '.join(process.arguments)} ended with {started.returncode}, not {process.code}: "
                f"{said.read().decode(errors='replace')[-2000:]}"
            )
    return usage.ru_utime + usage.ru_stime


def measured(wanted: Mapping[str, Process], rounds: int) -> dict[str, Spread]:
    """CPU time of each, from so many rounds after one that fills the caches of the disk."""
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}")
        for name, process in wanted.items():
            taken = cpu_seconds(process)
            if number:
                seconds[name].append(taken)
    return {name: spread(found) for name, found in seconds.items()}


def shown(results: Mapping[str, Spread]) -> str:
    """One line for each process; the last column is its median divided by that of `import torch`."""
    rows = [
        (name, f"{own.median:.2f}", f"{own.q20:.2f} .. {own.q80:.2f}", f"{ratio:.2f} x")
        for (name, own), ratio in zip(results.items(), ratios(results).values(), strict=True)
    ]
    return aligned(("process", "median s", "20 % .. 80 %", BASELINE), rows)


def ratios(results: Mapping[str, Spread]) -> dict[str, float]:
    """Medians as multiples of that of `import torch`."""
    return {name: round(own.median / results[BASELINE].median, 3) for name, own in results.items()}


def _checkout() -> Path:
    """Folder of the package that is measured; found without importing it."""
    program = "import deformable_detr; print(deformable_detr.__file__)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip()).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Table for people on standard error, one JSON line on standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        # Always by this checkout: names may differ in another, the file does not.
        ours = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([sys.executable, "-c", _PREPARE, name], check=True, env=ours)
        results = measured(processes(Path(name)), options.rounds)
    facts = machine("cpu") | {"threads": 1, "commit": revision(_checkout())}
    facts |= {package: version(package) for package in ("torchvision", "timm", "typer")}
    say(shown(results))
    line = json_line({"cpu": results}, BASELINE, {"benchmark": "clock", **facts, "ratios": ratios(results)})
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
