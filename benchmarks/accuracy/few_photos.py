"""Recipes for a few hundred photos, compared in the same time: which change of `small` pays for what it costs.

    python -m benchmarks.accuracy.few_photos FOLDER --data bccd cards --backbone-weights mobilenetv2_100.safetensors

First the CPU seconds of a training step of every arm are measured, once, into FOLDER/costs.json; the machine should do
nothing else. An arm then gets as many epochs as `small` has by itself, divided by how much more a step of it costs, and
is trained to the end of its own schedule on small pictures. Arms are judged by the best AP of the validation split; the
test split is left alone. Finished runs are skipped and stopped ones go on; --minutes or SIGTERM stops between two
steps. The table goes to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.accuracy.convergence.place import read_lines
from benchmarks.accuracy.convergence.plan import cost_of
from benchmarks.accuracy.convergence.watch import End, Watch
from benchmarks.report import aligned, machine, say
from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_json
from deformable_detr.data.open import open_dataset
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.lock import locked
from deformable_detr.runs.recipes import find_recipe, with_augmentation, with_backbone, with_image_size
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.train import resume, train

BASELINE = "small"
STEPS = 12
"""Timed steps of each arm."""
_HEAD = ("arm", "data", "seeds", "epochs", "cost", "val AP", "AP50", "against small")


class Arm(NamedTuple):
    """Recipe with changes."""

    settings: Mapping[str, Any] = {}
    """Settings beyond the recipe's, by full names."""
    recipe: str = "small"
    """Name of the recipe."""
    augmentation: str | None = None
    """Preset; None leaves the recipe's."""


_MIXED = {"criterion.class_loss": "mal", "criterion.class_weight": 1.0}
ARMS: dict[str, Arm] = {
    BASELINE: Arm(),
    "ema_auto": Arm({"optimizer.ema_decay": "auto"}),
    "flat_cosine": Arm({"schedule.shape": "flat_cosine", "schedule.drop_at": 0.5, "schedule.final_factor": 0.02}),
    "cosine": Arm({"schedule.shape": "cosine"}),
    "light": Arm(augmentation="light"),
    "strong": Arm(augmentation="strong"),
    "strong_until": Arm({"augmentation.until": 0.85}, augmentation="strong"),
    "queries_200": Arm({"model.num_queries": 200}),
    "denoising": Arm({"model.denoising_queries": 50}),
    "ia_bce": Arm({"criterion.class_loss": "ia_bce", "criterion.class_weight": 1.0}),
    "varifocal": Arm({"criterion.class_loss": "varifocal", "criterion.class_weight": 1.0}),
    "mal": Arm(_MIXED),
    "hybrid": Arm({"model.hybrid_queries": 200}),
    "groups": Arm({"model.query_groups": 3}),
    "dino": Arm(recipe="dino_small"),
    "dino_plain": Arm({"model.denoising_queries": 0}, recipe="dino_small"),
    "dino_mal": Arm(_MIXED, recipe="dino_small"),
    "dino_hybrid": Arm({"model.denoising_queries": 0, "model.hybrid_queries": 200}, recipe="dino_small"),
}
"""Changes of `small` that are tried, each alone; those of DINO are its mixed queries and looking forward twice."""


def config_of(arm: Arm, backbone_weights: str, image_size: int, seed: int) -> TrainConfig:
    """Settings of a run of an arm; the number of epochs is that which the recipe chooses by the data.

    Args:
        arm: the arm.
        backbone_weights: as for `ddetr train`.
        image_size: short side of the pictures; 0 leaves it to the recipe.
        seed: seed of the run.
    """
    config = with_backbone(find_recipe(arm.recipe), name=None, weights=backbone_weights)
    if image_size:
        config = with_image_size(config, image_size)
    if arm.augmentation is not None:
        config = with_augmentation(config, arm.augmentation)
    return config.with_settings(
        {
            **arm.settings,
            "run.seed": seed,
            # Everything in one process: its CPU time is then that of the run.
            "data.num_workers": 0,
            "compute.precision": "float32",
            "compute.products": "pytorch",
            "checkpoints.keep_last": 1,
        }
    )


def costs_of(
    folder: Path, names: Sequence[str], data: Path, backbone_weights: str, image_size: int
) -> dict[str, float]:
    """CPU seconds of a training step of every arm; measured once, then read from FOLDER/costs.json."""
    file = folder / "costs.json"
    known: dict[str, float] = read_json(file) if file.exists() else {}
    for name in [one for one in dict.fromkeys((BASELINE, *names)) if one not in known]:
        with tempfile.TemporaryDirectory() as scratch:
            config = config_of(ARMS[name], backbone_weights, image_size, 0)
            known[name] = cost_of(config, None, data, STEPS, Path(scratch)).step
        say(f"{name}: {known[name]:.3f} s a step, {known[name] / known[BASELINE]:.2f} x {BASELINE}")
        write_json(file, known)
    return known


def epochs_of(config: TrainConfig, data: Path, cost: float) -> int:
    """Epochs that cost as much as those of the baseline.

    Args:
        config: settings whose number of epochs is that of the baseline, or "auto".
        data: the data set.
        cost: cost of a step, as a multiple of the baseline's.
    """
    fitted, _ = fit_to_data(config, open_dataset(data, split="train"))
    return max(1, round(settled(fitted.schedule.epochs) / cost))


def complete(config: TrainConfig, data: Path, folder: Path, end: End, label: str) -> dict[str, Any] | None:
    """Train a run to its end; returns its figures, or None if it was stopped before.

    Args:
        config: settings of the run.
        data: the data set.
        folder: place of the run and of its clock.
        end: when to stop.
        label: name for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_folder, clock = folder / "run", folder / "clock.jsonl"
    watch = Watch(clock, end, label)
    common: dict[str, Any] = {
        "device": "cpu", "log": [], "report": False, "on_interrupt": "return", "reporter": watch,
    }  # fmt: skip
    if run_folder.is_dir() and RunFolder(run_folder).resumable():
        run = resume(run_folder, **common)
    else:
        shutil.rmtree(run_folder, ignore_errors=True)
        clock.unlink(missing_ok=True)
        run = train(config, data=data, output=run_folder, **common)
    if run.interrupted:
        watch.note(None)
        return None
    rows = [row for row in read_lines(run_folder / "metrics.jsonl") if row["kind"] == "epoch" and row.get("val")]
    best = max(rows, key=lambda row: row["val"]["ap"])
    for path in RunFolder(run_folder).resumable():  # the state of training, which nobody needs any more
        path.unlink()
    return {
        "epochs": rows[-1]["epoch"],
        "best_epoch": best["epoch"],
        "ap": best["val"]["ap"],
        "ap50": best["val"]["ap50"],
        "ap50_per_class": {name: one["ap50"] for name, one in best["val_per_class"].items()},
        "last_ap": rows[-1]["val"]["ap"],
        "cpu_seconds": sum(line["cpu_seconds"] for line in read_lines(clock)),
    }


def table(results: Sequence[Mapping[str, Any]], costs: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Rows of the table: every arm on every data set, its difference from the baseline of the same seeds."""
    rows: list[tuple[str, ...]] = []
    base = {(one["data"], one["seed"]): one["ap"] for one in results if one["arm"] == BASELINE}
    for arm in ARMS:
        for data in sorted({one["data"] for one in results}):
            own = [one for one in results if (one["arm"], one["data"]) == (arm, data)]
            if not own:
                continue
            pairs = [one["ap"] - base[data, one["seed"]] for one in own if (data, one["seed"]) in base]
            rows.append(
                (
                    arm,
                    data,
                    str(len(own)),
                    str(own[0]["epochs"]),
                    f"{costs[arm] / costs[BASELINE]:.2f}",
                    f"{100 * statistics.mean(one['ap'] for one in own):.1f}",
                    f"{100 * statistics.mean(one['ap50'] for one in own):.1f}",
                    f"{100 * statistics.mean(pairs):+.1f}" if pairs else "",
                )
            )
    return rows


def work_through(given: argparse.Namespace, end: End) -> list[dict[str, Any]]:
    """Train what is not finished, a seed of all arms and data sets before the next; returns all results."""
    costs = costs_of(given.folder, given.arms, given.data[0], given.backbone_weights, given.image_size)
    wanted = [(seed, name, data) for seed in range(given.seeds) for name in given.arms for data in given.data]
    for seed, name, data in wanted:
        folder = given.folder / data.name / f"{name}_s{seed}"
        file = folder / "result.json"
        if file.exists() or end.has_come:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder, say):
                config = config_of(ARMS[name], given.backbone_weights, given.image_size, seed)
                epochs = epochs_of(config, data, costs[name] / costs[BASELINE])
                config = config.with_settings({"schedule.epochs": given.epochs or epochs})
                found = complete(config, data, folder, end, f"{data.name} {name} {seed}")
        except OutputError:
            say(f"{folder} is trained by another process")
            continue
        if found is not None:
            write_json(file, {"arm": name, "data": data.name, "seed": seed, **found, **machine("cpu")})
    results = [read_json(path) for path in sorted(given.folder.glob("*/*/result.json"))]
    say(aligned(_HEAD, table(results, costs)))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, train, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--backbone-weights", required=True, help="a file, hub or none")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--image-size", type=int, default=160, help="short side; 0 leaves it to the recipe")
    parser.add_argument("--epochs", type=int, default=0, help="of every arm; 0: as many as cost the same")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="after which the run is saved and the command ends")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    end = End(given.minutes)
    with end.listening():
        results = work_through(given, end)
    print(json.dumps({"benchmark": "few_photos", "results": results}))


if __name__ == "__main__":
    main()
