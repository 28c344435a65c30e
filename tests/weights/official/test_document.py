import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DETRConfig
from deformable_detr.weights.checkpoint import HEADER_ENTRY, Checkpoint
from deformable_detr.weights.coco_classes import COCO_CLASSES
from deformable_detr.weights.official.document import (
    arguments_of,
    averaged_first,
    counted,
    description,
    official_tensors,
    owned,
    parameter_names,
    unlike,
    warn_of_what_changes,
    write_document,
)

CONFIG = DETRConfig(num_classes=2)


def checkpoint():
    return Checkpoint(
        weights={"a": torch.arange(6.0).view(2, 3)},
        model=CONFIG,
        classes=("cat", "dog"),
        category_ids=(0, 1),
        preprocessing=Preprocessing(short_side=480, max_side=640),
        licence="MIT",
    )


def test_tensors_in_all_shapes_that_files_have(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    one = torch.ones(2)
    for document in ({"model": {"x": one}}, {"x": one}, {"state_dict": {"module.x": one}}):
        assert official_tensors(tmp_path, document) == {"x": one}
    assert official_tensors(tmp_path, {"model": {"x": one, "bn1.num_batches_tracked": one}}) == {"x": one}
    assert "1 counters are not used" in caplog.text
    for wrong in ({"model": {}}, {"x": 3}, {3: one}, one):
        with pytest.raises(CheckpointError, match="holds no table of named tensors"):
            official_tensors(tmp_path, wrong)


class Settings:
    """Settings object as DINO's code has it."""

    _cfg_dict: ClassVar = {"nheads": 5}


def test_averaged_weights_come_first():
    plain = {"model": {"module.a": 1}, "epoch": 3}
    averaged = {"model": {"a": 1}, "ema_model": {"module.b": torch.ones(1)}}
    assert averaged_first(plain) is plain
    assert averaged_first(averaged) == {"model": averaged["ema_model"]}
    assert averaged_first(3) == 3
    assert averaged_first({"ema_model": {}}) == {"ema_model": {}}
    nested = {"model": {"a": 1}, "ema_model": {"module": {"b": torch.ones(1)}}}
    assert averaged_first(nested) is nested
    assert (parameter_names(plain), parameter_names(averaged), parameter_names(3)) == ({"a"}, {"b"}, set())
    one, two = torch.ones(2), torch.zeros(3)
    assert official_tensors(Path("x.pth"), {"model": {"a": one}, "ema_model": {"module.b": two}}) == {"b": two}


def test_arguments():
    assert arguments_of({"args": argparse.Namespace(nheads=3)}) == {"nheads": 3}
    assert arguments_of({"args": {"nheads": 3}}) == {"nheads": 3}
    assert arguments_of({"args": argparse.Namespace(_cfg_dict={"nheads": 3})}) == {"_cfg_dict": {"nheads": 3}}
    assert arguments_of({"args": Settings()}) == {"nheads": 5}
    assert arguments_of({"args": 3}) is arguments_of({}) is arguments_of(torch.ones(2)) is None


def test_what_differs_is_counted():
    found = unlike({"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.Size([3]), "c": torch.Size([1])})
    assert counted(found) == "1 missing: c; 1 unexpected: b; 1 of another shape: a is [2] there and [3] here"
    assert counted(unlike({"a": torch.ones(2)}, {"a": torch.Size([2])})) == ""


def test_a_description_of_a_published_file_and_one_of_ours(tmp_path):
    path = tmp_path / "x.pth"
    coco = description(path, {"epoch": 499}, DETRConfig(), source="a file", assumed="num_heads=8")
    assert (coco["classes"], coco["licence"]) == (list(COCO_CLASSES), "Apache-2.0")
    assert coco["provenance"] == {"source": "a file", "epochs": "500", "assumed": "num_heads=8"}
    assert coco["model"]["name"] == "detr"
    own = description(path, {"epoch": -3}, CONFIG, source="a file", assumed="")
    assert (own["classes"], own["licence"]) == (["class 0", "class 1"], "")
    assert "epochs" not in own["provenance"]
    write_document(checkpoint(), {"b": torch.ones(1)}, {"nheads": 8}, path)
    document = torch.load(path, weights_only=True)
    assert document.keys() == {"model", "args", HEADER_ENTRY}
    ours = description(path, document, replace(CONFIG, dropout=0.3), source="a file", assumed="x")
    assert (ours["classes"], ours["licence"]) == (["cat", "dog"], "MIT")
    assert ours["model"]["config"]["dropout"] == 0.3
    assert "source" not in ours["provenance"]


def test_eighty_channels_are_cocos_classes_where_the_code_counts_classes(tmp_path):
    config = DETRConfig(num_classes=80)
    by_class = description(tmp_path, {}, config, source="", assumed="", by_class=True)
    assert by_class["classes"][9:12] == ["traffic light", "fire hydrant", "stop sign"]
    assert (by_class["category_ids"][9:12], by_class["licence"]) == ([10, 11, 13], "Apache-2.0")
    by_id = description(tmp_path, {}, config, source="", assumed="")
    assert (by_id["classes"][79], by_id["category_ids"], by_id["licence"]) == ("class 79", list(range(80)), "")


def test_that_weights_are_averaged_is_told(tmp_path):
    document = {"model": {"a": 1}, "ema_model": {"a": torch.ones(2)}, "epoch": 4}
    told = description(tmp_path, document, CONFIG, source="a file", assumed="")["provenance"]
    assert told == {"source": "a file", "epochs": "5", "averaged": "the entry 'ema_model'"}


def test_copies_share_no_memory():
    whole = torch.arange(8.0)
    copy = owned({"a": whole[2:4]})["a"]
    assert copy.untyped_storage().nbytes() == 8
    whole.zero_()
    assert copy.tolist() == [2.0, 3.0]


def test_what_changes_is_said(tmp_path, caplog):
    warn_of_what_changes(checkpoint(), tmp_path, DETRConfig())
    assert caplog.text == ""
    other = replace(checkpoint(), category_ids=(7, 9), model=replace(CONFIG, frozen_stages=1))
    warn_of_what_changes(other, tmp_path, DETRConfig())
    assert "number the categories of its data set from 0 in the order cat, dog" in caplog.text
    assert "no place for frozen_stages=1" in caplog.text


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_document(checkpoint(), {}, {}, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []
