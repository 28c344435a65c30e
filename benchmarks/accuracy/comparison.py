"""Results of the arms of a comparison: a table, the curves, and one record of everything."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.arms import ARMS

Rows = list[dict[str, Any]]
"""Of one arm, in the order they were written."""
_MACHINE = ("processor", "cores", "threads", "system", "python", "torch", "timm", "transformers", "commit")


def read_arm(path: Path) -> Rows:
    """The lines an arm has written; none if it has not begun."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(folder: Path, data_name: str) -> dict[str, Any]:
    """Write table.md and curves.png of all arms in the folder, as far as they are; returns the record of it.

    Raises:
        ValueError: the arms did not learn from the same batches, or not with the same settings.
    """
    arms = {name: rows for name in ARMS if (rows := read_arm(folder / f"{name}.jsonl"))}
    check_same(arms)
    (folder / "table.md").write_text(table(arms), encoding="utf-8")
    draw(arms, data_name, folder / "curves.png")
    first = next(iter(arms.values()))[0]
    return {
        "data": data_name,
        **{name: first[name] for name in _MACHINE},
        "images": first["images"],
        "arms": {name: _summary(rows) for name, rows in arms.items()},
    }


def check_same(arms: Mapping[str, Rows]) -> None:
    """Refuse to compare what differs in more than the loss.

    Raises:
        ValueError: which arms, and where.
    """
    first, *others = arms
    for other in others:
        if arms[first][0]["config"] != arms[other][0]["config"]:
            raise ValueError(f"{first} and {other} were trained with different settings")
        for one, two in zip(_epochs(arms[first]), _epochs(arms[other]), strict=False):
            if one["batches"] != two["batches"]:
                raise ValueError(f"{first} and {other} had other batches in epoch {one['epoch']}")


def table(arms: Mapping[str, Rows]) -> str:
    """AP and AP50 of the validation split for each epoch and arm, in percent, then those of the test split."""
    names = list(arms)
    head = "".join(f" {ARMS[name].label}: AP | AP50 |" for name in names)
    lines = [f"| epoch | steps |{head}", "|---:|---:|" + "---:|---:|" * len(names)]
    by_arm = {name: {row["epoch"]: row for row in _epochs(rows)} for name, rows in arms.items()}
    for epoch in sorted(set().union(*by_arm.values())):
        rows = [by_arm[name].get(epoch) for name in names]
        step = next(row["step"] for row in rows if row is not None)
        lines.append(f"| {epoch} | {step} |" + "".join(_cells(row and row["val"]) for row in rows))
    tests = [_test(arms[name]) for name in names]
    if any(tests):
        lines.append("| test split, last epoch | |" + "".join(_cells(one) for one in tests))
    return "\n".join(lines) + "\n"


def draw(arms: Mapping[str, Rows], data_name: str, output: Path) -> None:
    """AP and AP50 of the validation split over the epochs, a line for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, 2), (("ap", "AP"), ("ap50", "AP50")), strict=True):
        for name, rows in arms.items():
            epochs = _epochs(rows)
            places, values = [row["epoch"] for row in epochs], [100 * row["val"][key] for row in epochs]
            axes.plot(places, values, marker=".", linewidth=1.6, label=ARMS[name].label)
        axes.set_title(f"{data_name}, validation: {label}, percent", loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, frameon=False)
    figure.savefig(output)


def _epochs(rows: Rows) -> Rows:
    return [row for row in rows if row["kind"] == "epoch"]


def _test(rows: Rows) -> dict[str, Any] | None:
    return next((row["test"] for row in rows if row["kind"] == "end"), None)


def _cells(judged: Mapping[str, Any] | None) -> str:
    return f" {100 * judged['ap']:.1f} | {100 * judged['ap50']:.1f} |" if judged else " | |"


def _summary(rows: Rows) -> dict[str, Any]:
    epochs, test = _epochs(rows), _test(rows)
    best: Sequence[dict[str, Any]] = sorted(epochs, key=lambda row: row["val"]["ap"])[-1:]
    return {
        "epochs": len(epochs),
        "last": _pair(epochs[-1]["val"]) if epochs else None,
        "best": {"epoch": best[0]["epoch"], **_pair(best[0]["val"])} if best else None,
        "test": _pair(test) if test else None,
        "train_seconds": sum(row["train_seconds"] for row in epochs),
        "without_gradient": rows[0]["without_gradient"],
        "difference_before_the_first_step": rows[0]["difference_before_the_first_step"],
    }


def _pair(judged: Mapping[str, Any]) -> dict[str, float]:
    return {name: judged[name] for name in ("ap", "ap50")}
