"""Accuracy of a recipe and its spread over seeds, from finished runs that differ only in their seed.

    ddetr train --data bccd --backbone-weights mobilenetv2_100.safetensors --seed 0 --output RUN0
    python -m benchmarks.accuracy.seeds RUN0 RUN1 RUN2 --data bccd --output benchmarks/results/FOLDER

Judges every run's best.safetensors on the validation and the test split, and with them the weights of its last step: as
they were averaged, and as they were trained. Leaves config.json and the epochs of metrics.jsonl of each run, table.md
and curves.png in the output folder. The tables also go to standard error; one line of JSON goes to standard output.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import machine, say
from deformable_detr.core.config import flat_settings
from deformable_detr.core.reading import read_json
from deformable_detr.data.open import list_splits, open_dataset
from deformable_detr.data.splits import open_training_data
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.training.state import trained_weights
from deformable_detr.weights import checkpoint as checkpoints

Result = dict[str, Any]
"""Of one run: its seed, its time, and what was measured by split and weights."""
_MAY_DIFFER = ("run.seed", "data.num_workers")
_WEIGHTS = {"best": "best epoch", "averaged": "last step, averaged", "trained": "last step, as trained"}


def judge_run(run: Path, data: Path) -> Result:
    """Measure a finished run on what it was judged by while it learnt, and on the test split if there is one."""
    config = _config(run)
    epochs = [row for row in _rows(run) if row["kind"] == "epoch"]
    if epochs[-1]["epoch"] != (wanted := settled(config.schedule.epochs)):
        raise SystemExit(f"{run} has {epochs[-1]['epoch']} of {wanted} epochs; ddetr train --resume {run}")
    last = checkpoints.load(run / "last.safetensors", training=True)
    contenders = {"best": Detector.load(run / "best.safetensors", device="cpu")}
    contenders["averaged"] = Detector.load(run / "last.safetensors", device="cpu")
    contenders["trained"] = Detector.load(run / "last.safetensors", device="cpu")
    checkpoints.load_weights(contenders["trained"].model, trained_weights(last), str(run))
    opened = open_training_data(data, val_share=config.data.val_share, seed=config.run.seed, skip_bad_images=False)
    splits = {"val": opened.val}
    if "test" in list_splits(data):
        splits["test"] = open_dataset(data, split="test")
    measured: dict[str, Any] = {}
    for split, dataset in splits.items():
        for name, detector in contenders.items():
            metrics = evaluate(detector, dataset).metrics
            measured.setdefault(split, {})[name] = {
                "ap": metrics.ap,
                "ap50": metrics.ap50,
                "ap50_per_class": {label: one.ap50 for label, one in metrics.per_class.items()},
            }
            say(f"{run.name}, {split}, {_WEIGHTS[name]}: AP {100 * metrics.ap:.1f}, AP50 {100 * metrics.ap50:.1f}")
    best = max((row for row in epochs if row.get("val")), key=lambda row: row["val"][config.checkpoints.best_by])
    return {
        "seed": config.run.seed,
        "epochs": wanted,
        "best_epoch": best["epoch"],
        "minutes": sum(row["train_seconds"] + row.get("val_seconds", 0.0) for row in epochs) / 60,
        "measured": measured,
    }


def check_same(runs: Sequence[Path]) -> None:
    """Refuse runs that differ in more than their seed.

    Raises:
        SystemExit: which, and in what.
    """
    first, *others = (flat_settings(to_json(_config(run))) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        differing = [name for name in first if name not in _MAY_DIFFER and first[name] != other.get(name)]
        if differing:
            raise SystemExit(f"{run} and {runs[0]} differ in {', '.join(differing)}, not in the seed alone")
    seeds = [one["run.seed"] for one in (first, *others)]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"the seeds are {seeds}; runs of the same seed are one run")


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation of shares, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def tables(results: Sequence[Result]) -> str:
    """Two tables: each seed's best epoch with its classes; and the last step's weights, averaged and not."""
    lines: list[str] = []
    for split, measured in results[0]["measured"].items():
        classes = list(measured["best"]["ap50_per_class"])
        lines += [f"| {split}, seed | best epoch | minutes | AP | AP50 |" + "".join(f" {name} |" for name in classes)]
        lines += ["|---|---:|---:|---:|---:|" + "---:|" * len(classes)]
        ours = [one["measured"][split]["best"] for one in results]
        for one, figures in zip(results, ours, strict=True):
            own = [figures["ap"], figures["ap50"], *(figures["ap50_per_class"][name] for name in classes)]
            begin = f"| {one['seed']} | {one['best_epoch']} of {one['epochs']} | {one['minutes']:.0f} |"
            lines.append(begin + "".join(f" {100 * value:.1f} |" for value in own))
        columns = [[figures[key] for figures in ours] for key in ("ap", "ap50")]
        columns += [[figures["ap50_per_class"][name] for figures in ours] for name in classes]
        minutes = statistics.mean(one["minutes"] for one in results)
        lines += [f"| all | | {minutes:.0f} |" + "".join(f" {spread(column)} |" for column in columns), ""]
    splits = list(results[0]["measured"])
    lines += ["| weights of the last step |" + "".join(f" {split} AP | AP50 |" for split in splits)]
    lines += ["|---|" + "---:|---:|" * len(splits)]
    for name, label in (("averaged", "averaged"), ("trained", "as trained")):
        cells = [
            spread([one["measured"][split][name][key] for one in results]) for split in splits for key in ("ap", "ap50")
        ]
        lines.append(f"| {label} |" + "".join(f" {one} |" for one in cells))
    return "\n".join(lines) + "\n"


def draw(runs: Mapping[int, Sequence[Mapping[str, Any]]], title: str, output: Path) -> None:
    """AP and AP50 of the validation split over the epochs, a line for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, 2), (("ap", "AP"), ("ap50", "AP50")), strict=True):
        for seed, rows in runs.items():
            judged = [row for row in rows if row["kind"] == "epoch" and row.get("val")]
            places, values = [row["epoch"] for row in judged], [100 * row["val"][key] for row in judged]
            axes.plot(places, values, linewidth=1.6, label=f"seed {seed}")
        axes.set_title(f"{title}, validation: {label}, percent", loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, frameon=False)
    figure.savefig(output)


def _keep(run: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["model"]["backbone_weights"] = Path(config["model"]["backbone_weights"]).name  # no path of this machine
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    epochs = [json.dumps(row) + "\n" for row in _rows(run) if row["kind"] == "epoch"]
    (folder / "metrics.jsonl").write_text("".join(epochs), encoding="utf-8")


def _config(run: Path) -> TrainConfig:
    return from_json(read_json(run / "config.json"), str(run / "config.json"))


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge, keep, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of finished trainings")
    parser.add_argument("--data", type=Path, required=True, help="what they were trained on")
    parser.add_argument("--output", type=Path, required=True, help="a folder; what is in it is replaced")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes by itself")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    check_same(given.runs)
    results = [judge_run(run, given.data) for run in given.runs]
    given.output.mkdir(parents=True, exist_ok=True)
    curves = {}
    for run, result in zip(given.runs, results, strict=True):
        curves[result["seed"]] = _rows(run)
        _keep(run, given.output / f"seed_{result['seed']}")
    table = tables(results)
    (given.output / "table.md").write_text(table, encoding="utf-8")
    draw(curves, given.data.name, given.output / "curves.png")
    say(table)
    print(json.dumps({**machine("cpu"), "data": given.data.name, "runs": results}))


if __name__ == "__main__":
    main()
