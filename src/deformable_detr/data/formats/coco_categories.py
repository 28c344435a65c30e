"""Categories of a COCO file: those that are classes, and those that only group others."""

from collections import defaultdict
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.parsing import class_name_text, shown, whole_number


class Categories(NamedTuple):
    """Categories that are classes, in the order of their ids."""

    names: tuple[str, ...]
    """Names of the classes."""
    ids: tuple[int, ...]
    """Category id of each class."""
    problems: list[Problem]
    """Categories that were left out."""


def read_categories(items: list[dict[str, Any]], used: AbstractSet[int], where: str) -> Categories:
    """Categories of a file, without those that only group others or repeat the name of another.

    Exports of Roboflow begin with a category for the whole project, which is the supercategory of all others and is
    never drawn. It would become a class that cannot be learnt.

    Args:
        items: the section "categories".
        used: ids that annotations use; a category with one of these is always a class.
        where: the file, for messages.

    Raises:
        DataError: a category is malformed, two that are used have one name, or there is none.
    """
    names: dict[int, str] = {}
    parents: dict[int, str] = {}
    for position, item in enumerate(items):
        place = f"{where}: categories[{position}]"
        category_id = whole_number(item.get("id"), place, "the category id")
        if category_id in names:
            raise DataError(f"{place}: the category id {category_id} is used twice")
        names[category_id] = class_name_text(_as_text(item.get("name")), place, "the category name")
        parents[category_id] = str(_as_text(item.get("supercategory")))
    if not names:
        raise DataError(f"{where}: 'categories' is empty, so there is nothing to detect")
    named_by: dict[str, set[int]] = defaultdict(set)
    for category_id, parent in parents.items():
        named_by[parent].add(category_id)
    grouping = {one for one, name in names.items() if one not in used and named_by.get(name, set()) - {one}}
    if len(grouping) == len(names):
        grouping = set()  # categories that group each other in a circle, and no object to tell them apart
    problems = [
        _left_out(where, names[one], one, "only groups others, and no object has it") for one in sorted(grouping)
    ]
    names = {one: names[one] for one in sorted(names) if one not in grouping}
    repeats = _repeats(names, used, where)
    problems += [_left_out(where, names[one], one, "repeats a name, and no object has it") for one in sorted(repeats)]
    names = {one: name for one, name in names.items() if one not in repeats}
    return Categories(tuple(names.values()), tuple(names), problems)


def _as_text(value: object) -> object:
    """Text of a number, because some tools number their classes; any other value as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _left_out(where: str, name: str, category_id: int, why: str) -> Problem:
    return Problem("unused_class", where, f"the category {shown(name)} (id {category_id}) {why}: left out", False)


def _repeats(names: dict[int, str], used: AbstractSet[int], where: str) -> set[int]:
    """Ids of categories that no object has and whose name is that of another category, which stays."""
    ids_of: dict[str, list[int]] = defaultdict(list)
    for category_id, name in names.items():
        ids_of[name].append(category_id)
    repeats: set[int] = set()
    for name, ids in ids_of.items():
        with_objects = [one for one in ids if one in used]
        if len(with_objects) > 1:
            raise DataError(
                f"{where}: the category name {shown(name)} is used twice, with the ids {with_objects[0]} and "
                f"{with_objects[1]}, and both have objects; give one of them another name"
            )
        repeats.update(set(ids) - set(with_objects or ids[:1]))
    return repeats
