from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.coco_categories import read_categories


def category(number: int, name: object, parent: object = None) -> dict[str, Any]:
    return {"id": number, "name": name} | ({} if parent is None else {"supercategory": parent})


@pytest.mark.parametrize(
    ("categories", "used", "ids"),
    [
        ([category(0, "cells", "none"), category(1, "red", "cells"), category(2, "white", "cells")], {1, 2}, (1, 2)),
        # In a split that shows no object at all it is left out as in the others.
        ([category(0, "cells", "none"), category(1, "red", "cells")], set(), (1,)),
        # Group and class share a name.
        ([category(0, "cell", "none"), category(1, "cell", "cell")], {1}, (1,)),
        ([category(0, "cell", "none"), category(1, "cell", "cell")], set(), (1,)),
        # COCO's person is its own supercategory.
        ([category(1, "person", "person"), category(2, "bicycle", "vehicle")], {2}, (1, 2)),
        # Whatever has objects is a class.
        ([category(0, "food", "none"), category(1, "pizza", "food")], {0, 1}, (0, 1)),
        # They group each other.
        ([category(4, "a", "b"), category(3, "b", "a")], set(), (3, 4)),
        ([category(0, 7, "none"), category(1, 8, 7)], {1}, (1,)),
        # A name twice, and only one of them is ever used.
        ([category(1, "a"), category(2, "a"), category(3, "b")], {2}, (2, 3)),
        ([category(1, "a"), category(2, "a")], set(), (1,)),
    ],
)
def test_which_categories_are_classes(categories: list[dict[str, Any]], used: set[int], ids: tuple[int, ...]) -> None:
    found = read_categories(categories, used, "a.json")
    assert found.ids == ids
    names = {item["id"]: str(item["name"]) for item in categories}
    assert found.names == tuple(names[one] for one in ids)
    assert len(found.problems) == len(categories) - len(ids)
    assert all(not problem.fatal and problem.message.endswith("left out") for problem in found.problems)


def test_what_is_left_out_is_named() -> None:
    (problem,) = read_categories([category(0, "cells"), category(1, "red", "cells")], {1}, "a.json").problems
    assert problem.where == "a.json"
    assert problem.message == "the category 'cells' (id 0) only groups others, and no object has it: left out"


@pytest.mark.parametrize("name", [None, True, "", [], {"en": "cat"}])
def test_names_that_are_none(name: object) -> None:
    with pytest.raises(DataError, match=r"a\.json: categories\[0\]: the category name must be text"):
        read_categories([category(1, name)], {1}, "a.json")


def test_one_name_of_two_classes() -> None:
    with pytest.raises(DataError, match=r"'a' is used twice, with the ids 1 and 5, and both have objects; give one"):
        read_categories([category(1, "a"), category(5, "a")], {1, 5}, "a.json")
