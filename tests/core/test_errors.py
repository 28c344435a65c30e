"""The tree of errors is the one drawn at the top of its module."""

import inspect
import re

from deformable_detr.core import errors


def test_the_drawing_shows_every_error_and_its_parent():
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))
    classes = {name: one for name, one in vars(errors).items() if inspect.isclass(one)}
    assert drawn == classes.keys() - {"DeformableDetrError"}
    assert all(classes[name].__bases__ == (errors.DeformableDetrError,) for name in drawn)
    assert errors.DeformableDetrError.__bases__ == (Exception,)
