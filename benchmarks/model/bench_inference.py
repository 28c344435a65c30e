"""Inference of whole models on a CPU: ours as it is, prepared and in bfloat16, against the library transformers.

`python -m benchmarks.model.bench_inference`. All sides have equal weights (but for `small`, whose choice of proposals
transformers does not have: there only the time can be compared) and take turns. Outputs are compared first. The roof is
the fastest large product of the same run; the share of it that a side reaches counts every multiplication and addition
of convolutions and linear layers. The table goes to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_extra, peak_resident
from benchmarks.model.bench_vs_transformers import our_model
from benchmarks.model.peer import peer
from benchmarks.report import ROOT, Spread, aligned, machine, say
from benchmarks.timing import Wall, interleaved
from deformable_detr.core.types import Predictions
from deformable_detr.inference.onednn import Linear, measured_choice, why_unpacked
from deformable_detr.inference.prepare import prepare
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.ops.adapters import accelerate
from deformable_detr.runs.recipes import RECIPES
from deformable_detr.weights.huggingface.keys import to_transformers_keys


class Case(NamedTuple):
    """Model and size of its images."""

    recipe: str
    """Recipe whose model it is."""
    size_hw: tuple[int, int]
    """Height and width of the images, in pixels."""
    batch: int
    """Images of each pass."""


CASES = {
    "small_320": Case("small", (320, 320), 1),
    "small_320_batch_8": Case("small", (320, 320), 8),
    "r50_480x640": Case("paper_r50", (480, 640), 1),
    "r50_480x640_batch_8": Case("paper_r50", (480, 640), 8),
    "r50_640": Case("paper_r50", (640, 640), 1),
    "r50_800x1333": Case("paper_r50", (800, 1333), 1),
}
USUAL = ("small_320", "r50_480x640", "r50_640", "r50_800x1333")
EAGER, PREPARED, BFLOAT16, COMPILED = "eager", "prepared", "bfloat16", "compiled"
THEIRS, ACCELERATED = "transformers", "transformers accelerated"
SIDES = (EAGER, PREPARED, BFLOAT16, COMPILED, THEIRS, ACCELERATED)
_SAME_LOGITS, _SAME_BOXES = 1e-4, 1e-5
_SAME_AS_THEIRS = 1e-3
_ROOF_TOKENS, _ROOF_CHANNELS = 4096, 1024

Look = Callable[[], Predictions]


def config_of(case: Case) -> DeformableDETRConfig:
    """Settings of the model of a case."""
    config = RECIPES[case.recipe]().model
    assert isinstance(config, DeformableDETRConfig)
    return config


def sides_of(case: Case, wanted: tuple[str, ...]) -> dict[str, Look]:
    """Calls that return the predictions of a pass, by side."""
    config = config_of(case)
    images = torch.randn(case.batch, 3, *case.size_hw, generator=torch.Generator().manual_seed(1))
    no_padding = torch.zeros(case.batch, *case.size_hw, dtype=torch.bool)
    model = our_model(config).eval()
    found: dict[str, Look] = {}

    def add(side: str, network: nn.Module) -> None:
        @torch.inference_mode()
        def look() -> Predictions:
            if side in (THEIRS, ACCELERATED):
                output = network(images, pixel_mask=(~no_padding).long())
                return Predictions(output.logits, output.pred_boxes)
            result: Predictions = network(images, no_padding).final
            return result

        found[side] = look

    makers: dict[str, Callable[[], nn.Module]] = {
        EAGER: lambda: model,
        PREPARED: lambda: prepare(model),
        BFLOAT16: lambda: prepare(model, precision="bfloat16"),
        COMPILED: lambda: _compiled(model),
        THEIRS: lambda: _theirs(config, model),
        ACCELERATED: lambda: _accelerated(_theirs(config, model)),
    }
    for side in wanted:
        add(side, makers[side]())
    return found


def _compiled(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.compile()
    return copied


def _theirs(config: DeformableDETRConfig, model: nn.Module) -> nn.Module:
    theirs = peer(config).eval()
    theirs.load_state_dict(to_transformers_keys(model.state_dict(), config))
    return theirs


def _accelerated(theirs: nn.Module) -> nn.Module:
    accelerate(theirs)
    return theirs


def compare(case: Case, sides: dict[str, Look]) -> dict[str, dict[str, float]]:
    """Largest differences of logits and boxes to those of the model as it is.

    Raises:
        SystemExit: a side that computes the same in float32 does not.
    """
    expected = sides[EAGER]()
    found: dict[str, dict[str, float]] = {}
    for side, look in sides.items():
        if side == EAGER or (side in (THEIRS, ACCELERATED) and case.recipe == "small"):
            continue
        other = look()
        logits = float((other.logits - expected.logits).abs().max())
        boxes = float((other.boxes - expected.boxes).abs().max())
        found[side] = {"logits": logits, "boxes": boxes}
        most = (_SAME_AS_THEIRS,) * 2 if side in (THEIRS, ACCELERATED) else (_SAME_LOGITS, _SAME_BOXES)
        if side != BFLOAT16 and not (logits <= most[0] and boxes <= most[1]):
            raise SystemExit(f"{side} does not compute the same: {found[side]}")
    return found


def operations(case: Case) -> int:
    """Multiplications and additions in the convolutions, linear layers and self-attention of one pass."""
    model = our_model(config_of(case)).eval().requires_grad_(False)  # the counter hooks into what learns
    images = torch.zeros(case.batch, 3, *case.size_hw)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, torch.zeros(case.batch, *case.size_hw, dtype=torch.bool))
    return int(counter.get_total_flops())


def roof(dtype: torch.dtype) -> float:
    """Operations per second of the fastest large product, of those that PyTorch offers."""
    tokens, weight = torch.randn(_ROOF_TOKENS, _ROOF_CHANNELS), torch.randn(_ROOF_CHANNELS, _ROOF_CHANNELS)
    layers = [
        Linear(weight.to(dtype), None, packed=packed) for packed in ([False, True] if not why_unpacked() else [False])
    ]
    inputs = tokens.to(dtype)
    with torch.inference_mode():
        clocks = {str(index): Wall(functools.partial(one, inputs)) for index, one in enumerate(layers)}
        times = interleaved(clocks, 1.0)
    return 2 * _ROOF_TOKENS * _ROOF_CHANNELS**2 / min(one.median for one in times.values())


def memory_here(case: Case, side: str) -> dict[str, Any]:
    """Memory of one pass in this process, which must be a fresh one."""
    look = sides_of(case, (side,))[side]
    extra, how = peak_extra(look, "cpu")
    return {"process": peak_resident(), "beyond_model": extra, "by": how}


def memory_of(case: str, side: str, threads: int) -> dict[str, Any]:
    """Memory of one pass in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.model.bench_inference", case, "--memory-of", side]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _rows(name: str, one: dict[str, Any]) -> list[tuple[str, ...]]:
    seconds: dict[str, Spread] = one["spread"]
    rows = []
    for side, own in seconds.items():
        between = f"{1000 * own.q20:.1f} .. {1000 * own.q80:.1f}"
        against = [f"{seconds[base].median / own.median:.2f} x" if base in seconds else "" for base in (EAGER, THEIRS)]
        reached = one["operations"] / own.median / one["roofs"]["bfloat16" if side == BFLOAT16 else "float32"]
        held = one["memory"].get(side)
        memory = f"{held['process'] / 2**20:.0f} MiB" if held else ""
        rows.append((name, side, f"{1000 * own.median:.1f}", between, *against, f"{reached:.0%}", memory))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Compare, measure, print the table, then the line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        sys.stdout.write(json.dumps(memory_here(CASES[options.cases[0]], options.memory_of)) + "\n")
        return
    versions = {name: version(name) for name in ("transformers", "timm")}
    facts: dict[str, Any] = {**machine("cpu"), **versions, "choice": str(measured_choice())}
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    roofs = {"float32": roof(torch.float32)}
    if "bfloat16" in options.sides:
        roofs["bfloat16"] = roof(torch.bfloat16)
    say(", ".join(f"roof {name} {value / 1e9:.0f} GFLOP/s" for name, value in roofs.items()))
    results: dict[str, dict[str, Any]] = {}
    rows: list[tuple[str, ...]] = []
    for name in options.cases:
        case = CASES[name]
        sides = sides_of(case, tuple(options.sides))
        differences = compare(case, sides)
        seconds = interleaved({side: Wall(look) for side, look in sides.items()}, options.seconds)
        memory = {side: memory_of(name, side, options.threads) for side in sides} if options.memory else {}
        one = {"spread": seconds, "operations": operations(case), "roofs": roofs, "memory": memory}
        rows += _rows(name, one)
        results[name] = {
            **one,
            "differences": differences,
            "spread": {side: own._asdict() for side, own in seconds.items()},
        }
        say(f"{name}: " + ", ".join(f"{side} {1000 * own.median:.1f} ms" for side, own in seconds.items()))
    head = ("case", "side", "median ms", "20 % .. 80 %", "of eager", "of transformers", "of the roof", "memory")
    say(aligned(head, rows))
    sys.stdout.write(json.dumps({**facts, "cases": results}) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; {', '.join(USUAL)} if left out")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="all but compiled if left out; eager is always there")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each side of a case")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as torch takes by itself")
    parser.add_argument("--memory", action="store_true", help="also the peak memory, in a process for each side")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(CASES)}")
    options.cases = options.cases or list(USUAL)
    wanted = options.sides or [side for side in SIDES if side != COMPILED]
    options.sides = [EAGER, *(side for side in wanted if side != EAGER)]
    return options


if __name__ == "__main__":
    main()
