"""The tree of errors is the one drawn at the top of its module, and what messages are made of."""

import inspect
import re

from deformable_detr.core import errors


def test_the_drawing_shows_every_error_and_its_parent():
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))
    found = inspect.getmembers(errors, inspect.isclass)
    classes = {name: one for name, one in found if one.__module__ == errors.__name__}
    assert drawn == classes.keys() - {"DeformableDetrError"}
    assert all(classes[name].__bases__ == (errors.DeformableDetrError,) for name in drawn)
    assert errors.DeformableDetrError.__bases__ == (Exception,)


def test_first_line_of_an_error():
    assert errors.first_line(RuntimeError("\n  out of everything\nand a long story")) == "out of everything"
    assert errors.first_line(KeyError()) == "KeyError"
    assert errors.first_line(ValueError("x" * 999)) == "x" * 200


def test_long_lists_are_shortened():
    assert errors.listed([]) == ""
    assert errors.listed(["a", "b", "c"]) == "a, b, c"
    assert errors.listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert errors.listed(("a", "b", "c"), most=1) == "a and 2 more"


def test_things_are_counted():
    assert [errors.counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [errors.counted(number, "class", "classes") for number in (1, 3)] == ["1 class", "3 classes"]
