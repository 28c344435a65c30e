"""Meaning of the four numbers of boxes in tables: where names of columns leave it open, all boxes decide together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.formats.csv_columns import BoxMeaning, Columns
from deformable_detr.data.formats.records import ImageRecord, RecordPart, are_shares, images_of_records
from deformable_detr.data.formats.shapes import Box
from deformable_detr.data.images import image_size

WORDS: dict[BoxMeaning, str] = {
    "size": "left, top, width, height",
    "center": "the center, width, height",
    "corners": "left, top, right, bottom",
}
"""Words for the meanings that are certain."""
_READINGS: dict[BoxMeaning, tuple[BoxMeaning, ...]] = {
    "size or center": ("size", "center", "corners"),
    "size or corners": ("size", "corners"),
}


def meaning_of(columns: Columns, parts: Sequence[RecordPart], where: str) -> BoxMeaning:
    """Meaning of the boxes of tables: by the names of their columns, else that under which boxes lie in their images.

    Args:
        columns: columns of the tables.
        parts: the tables with these columns; their boxes are the four numbers as they stand.
        where: file, for the message.

    Raises:
        DataError: several meanings are possible, or the sizes are those of the images.
    """
    named = columns.meaning
    if named not in ("size", *_READINGS):
        return named
    numbers, sizes_wh = _numbers_with_sizes(parts)
    if len(numbers) and np.allclose(numbers[:, 2:], sizes_wh) and numbers[:, :2].any():
        raise DataError(
            f"{where}: width and height are those of the images, so nothing says how large the boxes are; give "
            "columns xmin, ymin, xmax and ymax"
        )
    if named not in _READINGS:
        return named
    faults = {meaning: _num_faults(numbers, sizes_wh, meaning) for meaning in _READINGS[named]}

    def is_clearly_better(one: BoxMeaning, other: BoxMeaning) -> bool:
        return faults[other] > 0 and 10 * faults[one] <= faults[other]

    # These names usually mean the left top corner, and in this table of Kaggle's they do: all the more has to speak
    # against it.
    is_kaggle = columns.size_wh is not None and not columns.class_names
    if named == "size or center" or is_kaggle:
        certain = not any(is_clearly_better(other, "size") for other in faults)
        best: BoxMeaning = "size"
    else:
        best = min(faults, key=lambda meaning: faults[meaning])
        certain = all(is_clearly_better(best, other) for other in faults if other != best)
    if certain:
        return best
    counts = listed([f"{count} as {WORDS[meaning]}" for meaning, count in faults.items()])
    raise DataError(
        f"{where}: it is not certain what the numbers of a box are: so many boxes reach past their image or "
        f"have a negative size: {counts}; name the columns xmin, ymin, xmax, ymax, or xmin, ymin, width, height, or "
        "x_center, y_center, width, height (one column: bbox_xyxy, bbox_xywh or bbox_cxcywh)"
    )


def _numbers_with_sizes(
    parts: Sequence[RecordPart],
) -> tuple[Float[np.ndarray, "objects 4"], Float[np.ndarray, "objects 2"]]:
    """Four numbers of every box as they stand, with the size of its image, for images that are there."""
    rows: list[tuple[Box, tuple[int, int]]] = []
    for part in parts:
        try:
            records = part.read([])
        except DataError:
            continue  # It is explained when it is read itself.
        paths = images_of_records(records, part.folders, part.where).paths
        for record, path in zip(records, paths, strict=True):
            size_wh = record.size_wh
            if size_wh is None and path is not None and record.objects:
                try:
                    size_wh = image_size(path)
                except DataError:
                    continue
            rows += [(item.box_xyxy, size_wh) for item in record.objects if size_wh is not None]
    numbers = np.array([box for box, _ in rows], dtype=np.float64).reshape(-1, 4)
    return numbers, np.array([size_wh for _, size_wh in rows], dtype=np.float64).reshape(-1, 2)


def _num_faults(
    numbers: Float[np.ndarray, "objects 4"], sizes_wh: Float[np.ndarray, "objects 2"], meaning: BoxMeaning
) -> int:
    """Number of boxes that have a negative size, or reach past their image by more than a pixel, under a meaning."""
    if are_shares(numbers):
        numbers = numbers * np.tile(sizes_wh, 2)
    start, end = numbers[:, :2], numbers[:, 2:]
    if meaning == "center":
        start, end = start - end / 2, start + end / 2
    elif meaning == "size":
        end = start + end
    with np.errstate(invalid="ignore"):
        fits = (start >= -1) & (end >= start) & (end <= sizes_wh + 1)
    return int((~fits.all(axis=1)).sum())


def in_corners(records: list[ImageRecord], meaning: BoxMeaning) -> list[ImageRecord]:
    """Records with corners as boxes, from records that have the four numbers of a table as they stand.

    Args:
        records: images of a table.
        meaning: meaning of the numbers.
    """
    if meaning == "corners":
        return records
    return [
        record._replace(
            objects=[item._replace(box_xyxy=_corners_of(item.box_xyxy, meaning)) for item in record.objects]
        )
        for record in records
    ]


def _corners_of(numbers: Box, meaning: BoxMeaning) -> Box:
    first, second, third, fourth = numbers
    if meaning == "center":
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, first + third, second + fourth
