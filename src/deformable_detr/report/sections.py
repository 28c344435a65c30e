"""Sections of the report: each function turns one kind of finding into a section of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from deformable_detr.core.progress import percent
from deformable_detr.data.statistics import SIDE_NAMES, SplitStatistics
from deformable_detr.evaluation.analysis import THRESHOLDS, Analysis, Curves
from deformable_detr.evaluation.box_outcomes import OVERLAP
from deformable_detr.evaluation.evaluate import EvaluationReport
from deformable_detr.report.charts import Series, column_chart, heat_map, line_chart
from deformable_detr.report.history import History
from deformable_detr.report.looks import Looks
from deformable_detr.report.mistakes import Mistake, Mistakes
from deformable_detr.report.page import (
    Section,
    cards,
    command,
    folded,
    grid,
    matrix_table,
    paragraph,
    pictures,
    table,
)

_MOST_LINES = 8
_LARGEST_TABLE = 12
_MOST_OPEN = 12
_MOST_CONFUSIONS = 20
_NOTHING = "nothing"

_TWELVE = {
    "ap": "mean over overlaps (IoU) of 0.50, 0.55 ... 0.95",
    "ap50": "at an overlap of 0.50",
    "ap75": "at an overlap of 0.75",
    "ap_small": "small objects, below 32 x 32 px",
    "ap_medium": "medium objects, below 96 x 96 px",
    "ap_large": "large objects, from 96 x 96 px",
    "ar_1": "1 detection per class and image",
    "ar_10": "10 detections",
    "ar_100": "100 detections",
    "ar_small": "100 detections, small objects",
    "ar_medium": "100 detections, medium objects",
    "ar_large": "100 detections, large objects",
}


def at_a_glance(facts: Sequence[tuple[str, str]]) -> Section:
    """Section with the figures that most people want to see first; `facts` are names and values."""
    return Section("overview", "At a glance", cards(facts))


def training(history: History) -> Section:
    """Section on the training: loss, its terms, AP and learning rate over the epochs."""
    charts = [line_chart("Training loss", history.loss(), x_label="epoch")]
    charts.append(
        line_chart("AP on the validation images", history.precision(), x_label="epoch", y_label="%", y_range=(0, 100))
    )
    classes = history.class_precision()
    if 1 < len(classes) <= _MOST_LINES:
        charts.append(line_chart("AP of each class", classes, x_label="epoch", y_label="%", y_range=(0, 100)))
    for stage, terms in history.terms().items():
        others = {"proposals": "proposals", "one_to_many": "one-to-many queries, all layers"}
        where = others.get(stage, f"last decoder layer ({stage})")
        charts.append(line_chart(f"Loss terms before weighting: {where}", terms, x_label="epoch"))
    charts.append(line_chart("Learning rate", history.learning_rate(), x_label="epoch"))
    return Section("training", "Training", grid(charts))


def accuracy(report: EvaluationReport, analysis: Analysis) -> Section:
    """Section on accuracy: COCO's twelve numbers, by class and by size."""
    twelve = [(name.upper().replace("_", " "), percent(value), _TWELVE[name]) for name, value in _numbers(report)]
    rows = []
    for one, (name, own) in zip(analysis.classes, report.metrics.per_class.items(), strict=True):
        values = [percent(value) for value in (own.ap, own.ap50, own.ap75, own.ar)]
        rows.append([name, *values, str(one.num_objects)])
    sizes = [
        [size.name, percent(size.ap), percent(size.ar), f"{size.found} ({_share(size.found, size.objects)})",
         str(size.objects)]
        for size in analysis.sizes
    ]  # fmt: skip
    by_class = table(
        "By class, percent; a dash where there is nothing to find",
        ("class", "AP", "AP50", "AP75", "AR", "objects"),
        rows,
        bars=[max(0.0, own.ap) for own in report.metrics.per_class.values()],
    )
    by_size = table(
        f"By size, percent; found is at the threshold of {analysis.threshold:.2f} and an overlap of {OVERLAP}",
        ("size", "AP", "AR", "found", "objects"),
        sizes,
        bars=[max(0.0, size.ap) for size in analysis.sizes],
    )
    numbers = table("COCO's twelve numbers, percent", ("", "%", "what it is"), twelve)
    shown = grid([numbers, f"<div>{by_size}{by_class}</div>"], columns=2)
    return Section("accuracy", "Accuracy", shown + _beyond_coco(report))


def thresholds(analysis: Analysis) -> Section:
    """Section on score thresholds: precision, recall and F1 of every class, and the best threshold."""
    if not analysis.overall.num_objects:
        return Section("thresholds", "Precision, recall and thresholds", "")
    present = [one for one in analysis.classes if one.num_objects]
    rows = [_threshold_row(one) for one in present]
    # One class alone would repeat the charts of all classes; many classes would make the page too long to read.
    own = ["".join(_class_charts(one)) for one in present] if len(present) > 1 else []
    shown, hidden = own[:_MOST_OPEN], own[_MOST_OPEN:]
    text = (
        f"A detection is right if it overlaps an object of its class by {OVERLAP} (IoU) or more, and no detection with "
        "a higher score has found that object. F1 is the harmonic mean of precision (the share of detections that are "
        "right) and recall (the share of objects that are found). "
    )
    if analysis.overall.f1.max() > 0:
        text += f"Over all classes F1 is highest at a score threshold of {analysis.threshold:.2f}:"
        use = command(f"ddetr predict best.safetensors PHOTOS --threshold {analysis.threshold:.2f}")
    else:
        text += f"Nothing is found at any threshold. The counts on this page are for {analysis.threshold:.2f}."
        use = ""
    return Section(
        "thresholds",
        "Precision, recall and thresholds",
        paragraph(text)
        + use
        + grid(_class_charts(analysis.overall), columns=2)
        + table(
            "The best threshold of each class",
            ("class", "F1", "threshold", "precision", "recall", "objects"),
            rows,
            bars=[float(one.f1.max()) for one in present],
        )
        + ("<h3>Class by class</h3>" if own else "")
        + grid(shown, columns=2)
        + folded(f"{len(hidden)} more classes", grid(hidden, columns=2)),
    )


def confusion(analysis: Analysis, names: Sequence[str]) -> Section:
    """Section on confusion: which class is taken for which, as a table, or as a heat map from 13 classes on."""
    matrix = analysis.confusion
    if not matrix.sum():
        return Section("confusion", "Confusion", "")
    labels = [*names, _NOTHING]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    text = (
        f"Rows: the true class. Columns: the class that was found, with a score of {analysis.threshold:.2f} or more "
        f"and an overlap of {OVERLAP} or more. The last column counts objects that were missed. The last row counts "
        "detections where nothing is, and duplicates. Percentages are shares of the row."
    )
    if len(labels) <= _LARGEST_TABLE + 1:
        drawn = matrix_table("Counts and shares", "is ↓ found →", labels, matrix.tolist(), shares.tolist())
    else:
        tips = "{row} found as {column}: {share} of the row"
        drawn = heat_map("Confusion matrix", shares, labels, labels, tips)
    return Section("confusion", "Confusion", paragraph(text) + drawn + _most_confused(matrix, labels))


def errors(analysis: Analysis) -> Section:
    """Section on the kinds of errors, and the AP that each of them costs."""
    rows = [
        [one.name, "-" if one.lost is None else f"{100 * one.lost:.1f}", str(one.at_threshold), one.meaning]
        for one in analysis.errors
    ]
    if not rows:
        return Section("errors", "Kinds of errors", "")
    text = (
        "Points that AP50 would gain if all errors of one kind were repaired and all others stayed (TIDE, Bolya et al. "
        f"2020). They do not add up. Counts are at the score threshold of {analysis.threshold:.2f}."
    )
    most = max(one.lost or 0.0 for one in analysis.errors)
    bars = [(one.lost or 0.0) / most if most > 0 else 0.0 for one in analysis.errors]
    shown = table("Kinds of errors", ("kind", "points", "count", "meaning"), rows, bars=bars)
    return Section("errors", "Kinds of errors", paragraph(text) + shown)


def calibration(analysis: Analysis) -> Section:
    """Section on calibration: whether seven in ten detections with a score of 0.7 are right."""
    one = analysis.calibration
    if not sum(one.counts) or not analysis.overall.num_objects:
        return Section("calibration", "Calibration", "")
    text = (
        "Of the detections with a score of about 0.7, seven in ten should be right. Where the curve is below the "
        f"diagonal, scores are too high. The expected calibration error is {100 * one.error:.1f} % over all "
        f"detections, and {100 * one.confident_error:.1f} % over those with a score of 0.1 or more. The first number "
        "looks better because most detections have a score near 0, and rightly so."
    )
    chart = line_chart(
        "Reliability",
        [
            Series("detections", one.scores, one.shares),
            Series("perfect", [0, 1], [0, 1], faint=True),
        ],
        x_label="score",
        y_label="share that is right",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    rows = [
        [f"{low / 10:.1f} to {(low + 1) / 10:.1f}", str(count), _mean(score), _mean(share)]
        for low, (count, score, share) in enumerate(zip(one.counts, one.scores, one.shares, strict=True))
    ]
    numbers = table("Detections by score", ("score", "detections", "mean score", "share right"), rows)
    return Section("calibration", "Calibration", paragraph(text) + grid([chart, numbers], columns=2))


def mistakes(examples: Mistakes, threshold: float) -> Section:
    """Section with pictures of the worst mistakes at the threshold."""
    notes = "".join(paragraph(f"Not shown: {why}") for why in examples.unreadable[:3])
    parts = []
    if examples.false_positives:
        text = (
            f"The wrong detections with the highest scores, from {threshold:.2f} on. "
            "Solid: the detection. Dashed: the objects."
        )
        parts.append(f"<h3>Found, but not there</h3>{paragraph(text)}{_gallery(examples.false_positives)}")
    if examples.misses:
        text = (
            f"Objects that no detection with a score of {threshold:.2f} or more found. "
            "Dashed: the object. Solid: detections that overlap it."
        )
        parts.append(f"<h3>There, but not found</h3>{paragraph(text)}{_gallery(examples.misses)}")
    return Section("mistakes", "The worst mistakes", "".join(parts) + notes)


def looks(found: Looks) -> Section:
    """Section with explanations: where the network looked for its best hit, its worst mistake and a missed object."""
    note = paragraph(found.note) if found.note else ""
    text = (
        "The points that the last decoder layer read for one detection. Their area is their effect: how far the class "
        "logit falls if the point is left out; blue speaks for the class, red against it. Squares are cells of the "
        "feature maps; dashed: the way of the box. DETR, which weighs every cell, has a map instead. More, and how not "
        "to read it: ddetr explain."
    )
    shown = pictures([(one.title, one.words, one.image_name, one.picture, one.size_wh) for one in found.shown])
    return Section("looks", "Where it looked", (paragraph(text) + shown if shown else "") + note)


def data(splits: Mapping[str, SplitStatistics], origin: str) -> Section:
    """Section on the training and validation images and their objects."""
    if not splits:
        return Section("data", "Data", "")
    facts = [
        ["images", *(str(one.images) for one in splits.values())],
        ["without objects", *(str(one.images_without_objects) for one in splits.values())],
        ["width, px", *(f"{one.smallest_wh[0]} to {one.largest_wh[0]}" for one in splits.values())],
        ["height, px", *(f"{one.smallest_wh[1]} to {one.largest_wh[1]}" for one in splits.values())],
        ["objects", *(str(one.boxes) for one in splits.values())],
        ["crowd regions", *(str(one.crowd_boxes) for one in splits.values())],
        *(
            [f"{size} objects", *(f"{one.by_size[size]} ({_share(one.by_size[size], one.boxes)})"
                                  for one in splits.values())]
            for size in ("small", "medium", "large")
        ),
        ["objects per image", *(" / ".join(f"{n:g}" for n in one.boxes_per_image) for one in splits.values())],
    ]  # fmt: skip
    first = next(iter(splits.values()))
    most = max(1, *first.boxes_per_class.values())
    classes = [
        [name, *(str(one.boxes_per_class.get(name, 0)) for one in splits.values())] for name in first.boxes_per_class
    ]
    chart = column_chart(
        "Sizes of boxes",
        SIDE_NAMES,
        [Series(name, (), [100 * n / max(1, one.boxes) for n in one.sides]) for name, one in splits.items()],
        x_label="square root of width x height, px",
        y_label="% of objects",
    )
    headings = ("", *splits)
    return Section(
        "data",
        "Data",
        paragraph(f"Evaluated on {origin}. Objects per image: fewest, median, most. Crowd regions are counted apart.")
        + grid([table("Images and objects", headings, facts), chart], columns=2)
        + table(
            "Objects of each class",
            ("class", *splits),
            classes,
            bars=[first.boxes_per_class[name] / most for name in first.boxes_per_class],
        ),
    )


def configuration(settings: Mapping[str, Any], versions: Sequence[tuple[str, str]]) -> Section:
    """Section with every setting of the run, and the versions of the software that made it."""
    rows = [[name, _as_text(value)] for name, value in settings.items()]
    known = table("Made with", ("", ""), [list(one) for one in versions]) if versions else ""
    listed = folded(f"{len(rows)} settings", table("config.json", ("setting", "value"), rows)) if rows else ""
    return Section("configuration", "Configuration", known + listed)


def _numbers(report: EvaluationReport) -> list[tuple[str, float]]:
    return list(report.metrics.twelve().items())


def _beyond_coco(report: EvaluationReport) -> str:
    """Tables of the numbers for more detections than COCO counts; empty if there are none."""
    own = report.metrics_at_n
    if own is None:
        return ""
    most = own.max_detections
    text = (
        "COCO's numbers count 100 detections of an image, and there may be more objects. These are the same with "
        f"{most} (params.maxDets = [1, 10, {most}] in pycocotools): they are not COCO's, and not to be compared with "
        f"those. Curves, thresholds, errors and mistakes below are with {most} detections, too."
    )
    meanings = [meaning.replace("100 detections", f"{most} detections") for meaning in _TWELVE.values()]
    rows = [
        (name.upper().replace("_", " "), percent(value), meaning)
        for (name, value), meaning in zip(own.twelve().items(), meanings, strict=True)
    ]
    numbers = table(f"Not COCO's: {most} detections of an image, percent", ("", "%", "what it is"), rows)
    by_class = table(
        f"Not COCO's, by class: {most} detections of an image, percent",
        ("class", "AP", "AP50", "AP75", "AR"),
        [
            [name, *(percent(value) for value in (one.ap, one.ap50, one.ap75, one.ar))]
            for name, one in own.per_class.items()
        ],
        bars=[max(0.0, one.ap) for one in own.per_class.values()],
    )
    return paragraph(text) + grid([numbers, by_class], columns=2)


def _threshold_row(one: Curves) -> list[str]:
    if one.f1.max() == 0:
        return [one.name, "0.00", "-", "-", "-", str(one.num_objects)]
    shares = (float(one.precision[one.best]), float(one.recall[one.best]))
    return [one.name, f"{one.f1.max():.2f}", f"{one.threshold:.2f}", *map(_mean, shares), str(one.num_objects)]


def _class_charts(one: Curves) -> list[str]:
    over_recall = line_chart(
        f"{one.name}: precision over recall",
        [Series("precision", one.recalls.tolist(), one.precision_at.tolist())],
        x_label="recall",
        y_label="precision",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    places = THRESHOLDS.tolist()
    over_threshold = line_chart(
        f"{one.name}: over the threshold",
        [
            Series("F1", places, one.f1.tolist()),
            Series("precision", places, one.precision.tolist()),
            Series("recall", places, one.recall.tolist()),
        ],
        x_label="score threshold",
        x_range=(0, 1),
        y_range=(0, 1),
        mark=(one.threshold, f"F1 {one.f1.max():.2f} at {one.threshold:.2f}") if one.f1.max() > 0 else None,
    )
    return [over_recall, over_threshold]


def _most_confused(matrix: Int[np.ndarray, "truth found"], labels: Sequence[str]) -> str:
    """Table of pairs of classes that are confused, the most frequent first; without missed and invented objects."""
    inner = matrix[:-1, :-1] * (1 - np.eye(len(matrix) - 1, dtype=np.int64))
    order = np.argsort(-inner, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    rows = []
    for row, column in zip(*(place.tolist() for place in np.unravel_index(order, inner.shape)), strict=True):
        if inner[row, column]:
            share = _share(int(inner[row, column]), int(matrix[row].sum()))
            rows.append([labels[row], labels[column], str(inner[row, column]), share])
    if not rows:
        return paragraph("No class was taken for another.")
    return table("The most frequent confusions of two classes", ("is", "found as", "count", "of the class"), rows)


def _gallery(examples: Sequence[Mistake]) -> str:
    return pictures([(one.title, one.explanation, one.image_name, one.picture, one.size_wh) for one in examples])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _mean(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
