import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DETRConfig
from deformable_detr.weights.huggingface.config_file import (
    TYPES,
    category_ids_from,
    check_equal,
    check_fixed,
    check_kind,
    check_types,
    class_entries,
    classes_from,
    num_labels_of,
)


def test_types_are_checked_by_name():
    check_types({"backbone": "resnet50", "dilation": None, "unknown": [3]}, TYPES, "")
    with pytest.raises(CheckpointError, match=r"x\.dilation is 'yes', which it cannot be in a config\.json"):
        check_types({"dilation": "yes"}, TYPES, "x.")


def test_kinds():
    check_kind({"model_type": "cat"}, "cat", "CatModel")
    for settings, message in (
        ({}, "no model_type in it"),
        ({"model_type": "dog"}, "of type 'dog', not 'cat'"),
        ({"model_type": "cat", "architectures": ["CatBackbone"]}, "it holds CatBackbone, .*; not CatModel"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_kind(settings, "cat", "CatModel")


def test_fixed_and_equal():
    check_fixed({"a": 1}, {"a": 1, "b": 2})
    with pytest.raises(CheckpointError, match="b is 3; only 2 can be built here"):
        check_fixed({"b": 3}, {"b": 2})
    check_equal({"a": 4}, {"a": ("b", 4)})
    with pytest.raises(CheckpointError, match="a is 4 and b is 5; here both must be equal"):
        check_equal({"a": 4}, {"a": ("b", 5)})


def test_classes_go_there_and_back():
    entries = class_entries(DETRConfig(frozen_stages=1), ("cat", "dog"), (17, 18))
    assert classes_from(entries) == ("cat", "dog")
    assert category_ids_from(entries, ("cat", "dog")) == (17, 18)
    assert entries["deformable_detr"]["frozen_stages"] == 1
    assert num_labels_of(entries) == 2
    assert num_labels_of({"num_labels": 5}) == 5
