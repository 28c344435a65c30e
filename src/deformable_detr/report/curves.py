"""A run at a glance: loss, average precision and learning rate over the epochs, from metrics.jsonl."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.runs.folder import read_records

_MOST_CLASSES = 12


def draw_curves(metrics: str | Path, output: str | Path) -> Path:
    """Draw a run's metrics.jsonl as a picture; the ending of `output` decides its format. Returns its path.

    Lines that are no JSON, as a crash may leave one, are passed over.

    Raises:
        DataError: the file cannot be read or has no figures in it yet.
        OutputError: the picture cannot be written.
    """
    metrics, output = Path(metrics), Path(output)
    rows = list(read_records(metrics))
    steps, epochs = ([row for row in rows if row.get("kind") == kind] for kind in ("step", "epoch"))
    if not steps and not epochs:
        raise DataError(f"{metrics}: there are no figures in it yet")
    figure = _figure(steps, epochs)
    try:
        # A class name may have letters that matplotlib's font lacks; the picture then shows a box, which says enough.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot write the curves: {error.strerror or error}") from error
    return output


def _figure(steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> Any:
    # Not pyplot: it would keep the figure and choose a window system for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    loss, precision, rate, classes = figure.subplots(2, 2).flat
    _draw_loss(loss, steps, epochs)
    judged = [row for row in epochs if row.get("val")]
    for name, label in (("ap50", "AP50"), ("ap", "AP"), ("ap75", "AP75")):
        _line(precision, [float(row["epoch"]) for row in judged], [row["val"].get(name) for row in judged], label)
    _finish(precision, "validation: average precision", share=True)
    _line(rate, _places(steps), [row.get("lr") for row in steps], "learning rate", marker="")
    _finish(rate, "learning rate")
    names = list(judged[-1].get("val_per_class", {})) if judged else []
    for name in names[:_MOST_CLASSES]:
        values = [row.get("val_per_class", {}).get(name, {}).get("ap50") for row in judged]
        _line(classes, [float(row["epoch"]) for row in judged], values, _literal(name))
    _finish(classes, f"validation: AP50 of each class{_of_how_many(names)}", share=True)
    return figure


def _draw_loss(axes: Any, steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> None:
    """Every logged step, pale, under the averages of the epochs."""
    axes.plot(_places(steps), _numbers(row.get("loss") for row in steps), linewidth=0.8, alpha=0.35, color="C0")
    averages = [row for row in epochs if row.get("train")]
    _line(
        axes,
        [float(row["epoch"]) for row in averages],
        [row["train"].get("loss") for row in averages],
        "average of the epoch",
    )
    _finish(axes, "training loss")


def _places(steps: Sequence[dict[str, Any]]) -> list[float]:
    """Steps as fractions of epochs: an epoch's average and evaluation stand at its end."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for row in steps:
        first[row["epoch"]] = min(row["step"], first.get(row["epoch"], row["step"]))
        last[row["epoch"]] = max(row["step"], last.get(row["epoch"], 0))
    return [
        row["epoch"] - 1 + (row["step"] - first[row["epoch"]] + 1) / (last[row["epoch"]] - first[row["epoch"]] + 1)
        for row in steps
    ]


def _line(axes: Any, places: Sequence[float], values: Sequence[float | None], label: str, marker: str = ".") -> None:
    if places:
        axes.plot(places, _numbers(values), marker=marker, linewidth=1.6, label=label)


def _numbers(values: Iterable[float | None]) -> list[float]:
    """What is undefined, COCO's -1 too, leaves a gap."""
    return [float("nan") if value is None or value < 0 else value for value in values]


def _finish(axes: Any, title: str, *, share: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if share:
        axes.set_ylim(0, 1)
    else:
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=8, frameon=False, ncols=2 if len(handles) > 6 else 1)


def _literal(name: str) -> str:
    """matplotlib takes dollars for formulas, and names that begin with _ for private."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _of_how_many(names: Sequence[str]) -> str:
    return f" (the first {_MOST_CLASSES} of {len(names)})" if len(names) > _MOST_CLASSES else ""
