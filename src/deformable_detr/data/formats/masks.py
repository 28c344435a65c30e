"""Masks in COCO's run lengths, and the boxes around them."""

from collections.abc import Sequence

import numpy as np

from deformable_detr.data.formats.shapes import Box


def run_lengths(counts: str | Sequence[int]) -> list[int]:
    """Lengths of the runs of a mask, unset and set in turn, from COCO's text or from a list.

    In the text each number has one letter or more: five bits in each, from the lowest, a sixth that says whether more
    follow, and the sign; from the third number on it is the difference to the number two before it.

    Raises:
        ValueError: the text has other letters or breaks off, or a length is negative or no number.
    """
    if isinstance(counts, str):
        lengths = _from_text(counts)
    elif all(type(length) is int for length in counts):
        lengths = list(counts)
    else:
        raise ValueError("the lengths of the runs must be whole numbers")
    if any(length < 0 for length in lengths):
        raise ValueError("a run has a negative length")
    return lengths


def _from_text(text: str) -> list[int]:
    lengths: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("the runs of its mask cannot be unpacked")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("the runs of its mask are cut off")
    return lengths


def box_around_mask(lengths: Sequence[int], height: int) -> Box | None:
    """Box around the pixels of a mask that are set, edge to edge; None if none is.

    Args:
        lengths: lengths of the runs, unset and set in turn, column by column.
        height: number of rows, at least 1.
    """
    runs = np.array(lengths, dtype=np.int64)
    inside = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    if not inside.any():
        return None
    ends = np.cumsum(runs)
    first, last = (ends - runs)[inside], ends[inside] - 1
    # A run that goes on in the next column has the bottom of one and the top of the other.
    within_one = first // height == last // height
    top = np.where(within_one, first % height, 0).min()
    bottom = np.where(within_one, last % height + 1, height).max()
    return float(first.min() // height), float(top), float(last.max() // height + 1), float(bottom)
