from typing import get_args

from deformable_detr.core.format_names import FormatName
from deformable_detr.data import open as opening


def test_every_name_has_a_reader_in_this_order():
    assert get_args(FormatName) == tuple(opening._FORMATS)
