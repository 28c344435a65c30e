"""Checks of what a checkpoint says about itself, the same for all layouts and, for classes, the same as for data sets.

Whoever made the file may have written anything into it: names that move the cursor, ids that are truth values, metrics
that are no numbers. What is checked here can be printed, drawn, compared and written again.
"""

import math
from collections.abc import Mapping, Sequence

from deformable_detr.core.errors import CheckpointError, DataError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.data.formats.parsing import check_class_names

_LARGEST_ID = 2**63 - 1
_LONGEST_TEXT = 2000
_MOST_FACTS = 1000


def check_classes(classes: Sequence[object], category_ids: Sequence[object], num_classes: int) -> None:
    """Check class names and category ids: as many as the model has classes, all usable, none twice.

    Args:
        classes: class names by class id.
        category_ids: category ids of the data set, by class id.
        num_classes: number of classes of the model.

    Raises:
        CheckpointError: they cannot be used; the message does not name the file.
    """
    if not len(classes) == len(category_ids) == num_classes:
        raise CheckpointError(
            f"{len(classes)} class names and {len(category_ids)} category ids for a model of {num_classes} classes"
        )
    try:
        check_class_names(classes, "its description")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    seen: set[object] = set()
    for position, number in enumerate(category_ids):
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) > _LARGEST_ID:
            raise CheckpointError(
                f"its description: category id {position + 1} must be a whole number of at most 64 bits, "
                f"not {shown(number)}"
            )
        if number in seen:
            raise CheckpointError(f"its description: the category id {number} appears twice")
        seen.add(number)


def check_facts(metrics: object, provenance: object, licence: object) -> None:
    """Check metrics, provenance and licence.

    Args:
        metrics: finite numbers by name.
        provenance: texts by name.
        licence: a text.

    Raises:
        CheckpointError: they are something else; the message does not name the file.
    """
    for what, table in (("metrics", metrics), ("provenance", provenance)):
        if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
            raise CheckpointError(f"its description: {what} is {shown(table)}, not a table with names")
        if len(table) > _MOST_FACTS:
            raise CheckpointError(f"its description: {what} has {len(table)} entries, and at most {_MOST_FACTS} count")
    assert isinstance(metrics, Mapping)
    assert isinstance(provenance, Mapping)
    for name, value in metrics.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise CheckpointError(f"its description: the metric {shown(name)} is {shown(value)}, not a finite number")
    for name, value in provenance.items():
        if not isinstance(value, str):
            raise CheckpointError(f"its description: the provenance {shown(name)} is {shown(value)}, not a text")
    if not isinstance(licence, str):
        raise CheckpointError(f"its description: the licence is {shown(licence)}, not a text")


def short_facts(facts: Mapping[str, str]) -> dict[str, str]:
    """Names and texts of strangers, each in one line that can be printed and is not too long."""
    return {one_line(name): short_fact(text) for name, text in facts.items()}


def short_fact(text: str) -> str:
    """Text of a stranger in one line that can be printed and is not too long."""
    return one_line(text, _LONGEST_TEXT)
