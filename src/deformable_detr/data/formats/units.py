"""Signs of boxes in a wrong unit or form: shares of the image for pixels, corners for sizes, and sizes for corners.

Such boxes are numbers like any others, and a training on them ends with nothing learnt. What gives them away is all of
them together: no picture has all of its objects within its first pixel.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from deformable_detr.data.dataset import Problem

BoxForm = Literal["corners", "size"]
"""Form of the boxes in the source: left, top, right, bottom; or left, top, width, height."""

_ROUNDING_PX = 1.0
_MOST_OTHERS = 0.1
_FEWEST_BOXES = 2
_FEWEST_PAST = 1 / 3
_FEWEST_NEGATIVE = 0.5
_FAR_PAST = 0.05


def check_units(
    boxes_xyxy: Float[np.ndarray, "objects 4"],
    limits: Float[np.ndarray, "objects 4"],
    given: BoxForm | None,
    where: str,
) -> list[Problem]:
    """Problem of boxes that make no sense as pixels in the form they were read in, and all make sense in another.

    Args:
        boxes_xyxy: boxes as they were read, in pixels.
        limits: width, height, width, height of the image of each box.
        given: form of the boxes in the source; None if it has only one, such as centre and size.
        where: file or folder of the annotations, for messages.
    """
    finite = np.isfinite(boxes_xyxy).all(axis=1)
    boxes, sizes = boxes_xyxy[finite], limits[finite]
    if not len(boxes):
        return []
    found = _in_first_pixel(boxes, sizes)
    if not found and given is not None:
        found = _in_other_form(boxes, sizes, given)
    return [Problem("wrong_unit", where, text, fatal) for text, fatal in found]


def _in_first_pixel(
    boxes: Float[np.ndarray, "objects 4"], limits: Float[np.ndarray, "objects 4"]
) -> list[tuple[str, bool]]:
    """Message on boxes within 0..1, and whether they are so many that nothing else is meant than shares."""
    larger = (limits > 2).all(axis=1)
    extent = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    inside = larger & extent & (boxes >= -1e-3).all(axis=1) & (boxes <= 1 + 1e-3).all(axis=1)
    if not inside.any():
        return []
    # Some data sets give (0, 0, 1, 1) to images without objects. These say nothing, unless there are no others.
    says_something = (boxes != (0.0, 0.0, 1.0, 1.0)).any(axis=1)
    counted = says_something if says_something.any() else np.ones(len(boxes), dtype=bool)
    count, total = int(inside.sum()), len(boxes)
    example = ", ".join(f"{value:.4g}" for value in boxes[np.argmax(inside)].tolist())
    boxes_are = f"all {total} boxes" if count == total else f"{count} of {total} boxes"
    text = f"{boxes_are} lie within the first pixel of the image, such as ({example})"
    if (inside & counted).sum() >= (1 - _MOST_OTHERS) * counted.sum():
        return [(f"{text}: these are shares of width and height, not pixels; multiply them by the size", True)]
    return [(f"{text}: are these shares, or marks for images without objects?", False)]


def _in_other_form(
    boxes: Float[np.ndarray, "objects 4"], limits: Float[np.ndarray, "objects 4"], given: BoxForm
) -> list[tuple[str, bool]]:
    """Message on boxes of which many make no sense in the form they were read in, and all do in the other form."""
    left_top = boxes[:, :2]
    if given == "size":
        bad = (boxes[:, 2:] > limits[:, 2:] * (1 + _FAR_PAST)).any(axis=1)
        right_bottom, fewest = boxes[:, 2:] - left_top, _FEWEST_PAST
        fault, meant = "reach past their images", "right and bottom, not width and height"
    else:
        bad = (boxes[:, 2:] < left_top).any(axis=1)
        right_bottom, fewest = boxes[:, 2:] + left_top, _FEWEST_NEGATIVE
        fault, meant = "have a negative width or height", "width and height, not right and bottom"
    fits = (right_bottom > left_top) & (left_top >= -_ROUNDING_PX) & (right_bottom <= limits[:, 2:] + _ROUNDING_PX)
    if len(boxes) < _FEWEST_BOXES or bad.sum() < max(1, fewest * len(boxes)) or not fits.all():
        return []
    text = f"{int(bad.sum())} of {len(boxes)} boxes {fault}, and none would if the last two of the four numbers were"
    return [(f"{text} {meant}; change them to what the format asks for", True)]
