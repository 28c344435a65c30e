"""Analysis of the comparison, from the results of its finished arms: tables, a test, the bootstrap, curves.

    python -m benchmarks.accuracy.convergence.analysis --folder FOLDER

Writes FOLDER/table.md, epochs.png and seconds.png, and prints one line of JSON last. DETR's figure is that of its best
epoch, chosen on the very images that it is judged by, over all its schedules; those of the others are of their last
epoch. That favours DETR, and makes the test conservative. Learning rates were chosen on the same images with a seed of
their own, DETR's at a quarter of its longest schedule. Best weights are judged on the test images, too. Confidence from
the seeds: the exact one-sided permutation test. Confidence from the images: 1000 bootstrap samples of the validation
images, the same for all arms, on detections of the best weights.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.convergence.arms import FAMILIES, FASTER_RCNN, GRID_SEED, OTHER_SEEDS, TABLE_2, Arm, share
from benchmarks.accuracy.convergence.measures import bootstrap, match, read_results
from benchmarks.accuracy.convergence.place import Place
from benchmarks.accuracy.convergence.scenes import BOUNDS, SIZES
from benchmarks.accuracy.convergence.significance import first_reached, mean_and_spread, permutation_test
from benchmarks.report import machine, say
from deformable_detr.core.files import write_text
from deformable_detr.core.reading import read_json
from deformable_detr.data.open import open_dataset
from deformable_detr.evaluation.coco_metrics import coco_ground_truth

Result = dict[str, Any]
"""Result of a finished arm."""
DETR, OURS = "detr", "base"
_LEVEL = 95


class Cell(NamedTuple):
    """Arms that differ in their seed alone."""

    family: str
    epochs: int
    factor: float

    @property
    def label(self) -> str:
        """Name for tables and curves."""
        name = "Faster R-CNN" if self.family == FASTER_RCNN else FAMILIES[self.family].label
        return f"{name}, {self.epochs} epoch{'s' * (self.epochs != 1)}"


Cells = Mapping[Cell, Sequence[Result]]
"""Results by cell, in the order of the seeds."""


def cells_of(results: Sequence[Result], rates: Mapping[str, float]) -> Cells:
    """Results by cell; runs that only served to choose a learning rate are left out."""
    found: dict[Cell, list[Result]] = defaultdict(list)
    for one in sorted(results, key=lambda one: one["seed"]):
        group = FASTER_RCNN if one["family"] == FASTER_RCNN else FAMILIES[one["family"]].tuned_as
        if one["factor"] == rates.get(group, 1.0) and one["seed"] != GRID_SEED:
            found[Cell(one["family"], one["epochs"], one["factor"])].append(one)
    order = [*FAMILIES, FASTER_RCNN]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0].family), item[0].epochs)))


def best_of_detr(cells: Cells) -> tuple[Cell, list[float]] | None:
    """DETR's schedule with the highest mean AP of its best epochs, and that AP of every seed.

    A schedule of fewer seeds than are wanted of each, such as that of the pilot, does not count beside others.
    """
    seeds = [len(results) for cell, results in cells.items() if cell.family == DETR]
    enough = min(OTHER_SEEDS, max(seeds, default=0))
    own = {
        cell: [one["best"]["ap"] for one in results]
        for cell, results in cells.items()
        if cell.family == DETR and len(results) >= enough
    }
    return max(own.items(), key=lambda item: mean_and_spread(item[1])[0]) if own else None


def table(cells: Cells) -> str:
    """Every cell: last epoch, best epoch, all seeds, AP by size, parameters, seconds."""
    head = ["model, schedule", "AP, last epoch", "AP, best epoch", "seeds, last epoch", "AP50, last epoch"]
    head += [f"AP {size}, best epoch" for size in SIZES] + ["AP, best epoch, test", "parameters", "CPU minutes"]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for cell, results in cells.items():
        last, best = [one["last"]["ap"] for one in results], [one["best"]["ap"] for one in results]
        sizes = [[one["best"]["by_size"][f"ap_{size}"] for one in results] for size in SIZES]
        minutes = [one["last"]["cpu_seconds"] / 60 for one in results]
        lines.append(
            _row(
                [cell.label, _spread(last), _spread(best), ", ".join(f"{100 * value:.1f}" for value in last)]
                + [_spread([one["last"]["ap50"] for one in results])]
                + [_spread(own) if min(own) >= 0 else "" for own in sizes]
                + [_spread([one["test"]["ap"] for one in results]) if all(one.get("test") for one in results) else ""]
                + [f"{results[0]['parameters'] / 1e6:.2f} M", f"{np.mean(minutes):.1f}"]
            )
        )
    return "\n".join(lines) + "\n"


def reached(cells: Cells, threshold: float) -> list[dict[str, Any]]:
    """When the runs of each cell first reach an AP: how many do, and the means of their epochs and CPU seconds."""
    found = []
    for cell, results in cells.items():
        rows = [row for one in results if (row := first_reached(one["rows"], threshold)) is not None]
        found.append(
            {
                **cell._asdict(),
                "label": cell.label,
                "seeds": len(results),
                "reach": len(rows),
                "epochs_until": float(np.mean([row["epoch"] for row in rows])) if rows else None,
                "cpu_seconds_until": float(np.mean([row["cpu_seconds"] for row in rows])) if rows else None,
            }
        )
    return found


def tests(cells: Cells) -> list[dict[str, Any]]:
    """Whether each cell of ours, in its last epoch, is better than DETR in its best epoch of its best schedule."""
    best = best_of_detr(cells)
    if best is None:
        return []
    found = []
    for cell, results in cells.items():
        if cell.family == FASTER_RCNN or FAMILIES[cell.family].tuned_as == DETR:
            continue
        test = permutation_test([one["last"]["ap"] for one in results], best[1])
        found.append({**cell._asdict(), "label": cell.label, "seeds": [len(results), len(best[1])], **test._asdict()})
    return found


def bootstrapped(place: Place, cells: Cells, replicates: int) -> list[dict[str, Any]]:
    """Interval of the difference between each cell and DETR's best, over images: best weights, means over seeds."""
    best = best_of_detr(cells)
    if best is None:
        return []
    document = coco_ground_truth(open_dataset(place.data, split="val"))
    arms = [one for results in cells.values() for one in results]
    matched = [match(document, read_results(place.detections(_arm(one)))) for one in arms]
    values = bootstrap(matched, len(document["images"]), replicates)

    def mean_of(cell: Cell) -> Any:
        columns = [index for index, one in enumerate(arms) if one in cells[cell]]
        return values[:, columns].mean(axis=1)

    reference = mean_of(best[0])
    found = []
    for cell in cells:
        difference = mean_of(cell) - reference
        low, high = np.percentile(difference, ((100 - _LEVEL) / 2, (100 + _LEVEL) / 2))
        share_above = float((difference > 0).mean())
        found.append({**cell._asdict(), "label": cell.label, "low": low, "high": high, "share_above": share_above})
    return found


def ablation(cells: Cells, epochs: int) -> list[dict[str, Any]]:
    """Rows of Table 2 with the gain of each over the row before, and whether the seeds can tell."""
    found: list[dict[str, Any]] = []
    before: list[float] | None = None
    # In the paper's order: one level, then levels as inputs, then more points, then attention over all levels.
    for family in (*(one for one in TABLE_2 if one != "full_k1"), "full_k1"):
        cell = next((one for one in cells if one.family == family and one.epochs == epochs), None)
        if cell is None:
            continue
        values = [one["last"]["ap"] for one in cells[cell]][:3]
        gain = permutation_test(values, before)._asdict() if before and family != "full_k1" else None
        found.append({"family": family, "label": FAMILIES[family].label, "values": values, "gain": gain})
        before = values
    return found


def draw(cells: Cells, against: str, output: Path) -> None:
    """AP of the validation images, a line for each cell with the range of its seeds, against epochs or CPU seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for cell, results in cells.items():
        length = min(len(one["rows"]) for one in results)
        values = np.array([[100 * row["ap"] for row in one["rows"][:length]] for one in results])
        places = np.array([[row[against] for row in one["rows"][:length]] for one in results]).mean(axis=0)
        (line,) = axes.plot(places, values.mean(axis=0), marker=".", linewidth=1.4, label=cell.label)
        axes.fill_between(places, values.min(axis=0), values.max(axis=0), alpha=0.15, color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel({"epoch": "epochs", "cpu_seconds": "CPU seconds, evaluation included"}[against])
    axes.set_ylabel("AP, percent")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(output)


def analyse(place: Place, replicates: int) -> dict[str, Any]:
    """Write the tables and curves of all finished arms, as far as they are; returns the record of it.

    Raises:
        SystemExit: no arm is finished.
    """
    results = place.results()
    if not results:
        raise SystemExit(f"{place.path} has no finished arm; see the results of benchmarks.accuracy.convergence.run")
    epochs = int(read_json(place.path / "settings.json")["epochs"])
    cells = cells_of(results, place.rates(epochs))
    best = best_of_detr(cells)
    record: dict[str, Any] = {
        "cells": [
            {**cell._asdict(), "label": cell.label, "arms": [_kept(one) for one in own]} for cell, own in cells.items()
        ],
        "bounds": BOUNDS,
        "tests": tests(cells),
        "images": bootstrapped(place, cells, replicates),
        "table2": ablation(cells, share(epochs, 10)),
    }
    parts = [table(cells)]
    if best is not None:
        threshold = mean_and_spread(best[1])[0]
        record["threshold"] = {**best[0]._asdict(), "ap": threshold}
        record["reached"] = reached(cells, threshold)
        parts += [f"DETR's best: {100 * threshold:.1f} AP, {best[0].label}.\n", _reached_table(record["reached"])]
        parts += [_tests_table(record["tests"], record["images"])]
    if len(record["table2"]) > 1:
        parts.append(_ablation_table(record["table2"]))
    write_text(place.path / "table.md", "\n".join(parts))
    for against, name in (("epoch", "epochs.png"), ("cpu_seconds", "seconds.png")):
        draw(cells, against, place.path / name)
    return record


def _kept(result: Result) -> Result:
    """Of a result what the record needs: no settings, which the results have, and no row of an epoch but two."""
    return {name: result.get(name) for name in ("arm", "seed", "parameters", "best", "last", "test")}


def _arm(result: Result) -> Arm:
    return Arm(result["family"], result["epochs"], result["factor"], result["seed"])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_spread(values)
    return f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")


def _reached_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        _row(["reaches it", "seeds", "after epochs, of those", "after CPU minutes, of those"]),
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        until = ["", ""]
        if row["reach"]:
            until = [f"{row['epochs_until']:.1f}", f"{row['cpu_seconds_until'] / 60:.1f}"]
        lines.append(_row([row["label"], f"{row['reach']} of {row['seeds']}", *until]))
    return "\n".join(lines) + "\n"


def _tests_table(rows: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]) -> str:
    intervals = {one["label"]: f"{100 * one['low']:+.1f} .. {100 * one['high']:+.1f}" for one in images}
    head = ["last epoch against DETR's best", "difference", "p", "seeds", f"best weights, images: {_LEVEL} % interval"]
    lines = [_row(head), "|---|---:|---:|---:|---:|"]
    for row in rows:
        figures = [f"{100 * row['difference']:+.1f}", f"{row['p']:.3f}", "{} and {}".format(*row["seeds"])]
        lines.append(_row([row["label"], *figures, intervals.get(row["label"], "")]))
    return "\n".join(lines) + "\n"


def _ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [_row(["Table 2", "AP, last epoch", "gain over the row before", "p"]), "|---|---:|---:|---:|"]
    for row in rows:
        gain = (
            ["", ""] if row["gain"] is None else [f"{100 * row['gain']['difference']:+.1f}", f"{row['gain']['p']:.2f}"]
        )
        lines.append(_row([row["label"], _spread(row["values"]), *gain]))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Analyse what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap")
    given = parser.parse_args(arguments)
    record = analyse(Place(given.folder), given.replicates)
    say((given.folder / "table.md").read_text(encoding="utf-8"))
    print(json.dumps({**record, **machine("cpu")}))


if __name__ == "__main__":
    main()
