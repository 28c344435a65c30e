"""Folders whatever they hold, with a model of one tensor; tests/weights/huggingface/test_reader.py has the rest."""

import json

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DETRConfig
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.huggingface.config_file import class_entries
from deformable_detr.weights.huggingface.folder import FolderFormat, read_folder, write_folder
from tests.weights.tensors import usable_weights_of

CONFIG = DETRConfig(
    num_classes=2, backbone="test_resnet", hidden_dim=16, num_heads=2, encoder_layers=0, decoder_layers=1, ffn_dim=8,
    num_queries=3,
)  # fmt: skip
# A detector whose parameters are called as ours, with "their." before.
FORMAT = FolderFormat(
    lambda settings: (CONFIG, ["zoom"] if "zoom" in settings else []),
    lambda theirs, config: {name.removeprefix("their."): tensor for name, tensor in theirs.items()},
    lambda name: name.startswith("their.decoder.class_head."),
)


@pytest.fixture
def ours():
    return Checkpoint(
        weights=usable_weights_of(CONFIG),
        model=CONFIG,
        classes=("cat", "dog"),
        category_ids=(17, 18),
        preprocessing=Preprocessing(short_side=96, max_side=141),
        licence="MIT",
        metrics={"ap": 0.5},
    )


def write(ours, folder):
    weights = {f"their.{name}": tensor for name, tensor in ours.weights.items()}
    settings = class_entries(CONFIG, ours.classes, ours.category_ids)
    write_folder(ours, folder, title="A cat", processor="CatProcessor", settings=settings, weights=weights)


def test_there_and_back(ours, tmp_path):
    write(ours, tmp_path / "x")
    assert (
        json.loads((tmp_path / "x" / "preprocessor_config.json").read_text())["image_processor_type"] == "CatProcessor"
    )
    card = (tmp_path / "x" / "README.md").read_text()
    assert "# A cat" in card
    assert "ap: 0.5000" in card
    assert load_file(tmp_path / "x" / "model.safetensors").keys() == {f"their.{name}" for name in ours.weights}
    settings = json.loads((tmp_path / "x" / "preprocessor_config.json").read_text()) | {
        "image_processor_type": "DetrImageProcessor"
    }
    (tmp_path / "x" / "preprocessor_config.json").write_text(json.dumps(settings))
    back = read_folder(tmp_path / "x", FORMAT)
    assert (back.classes, back.category_ids, back.licence) == (ours.classes, ours.category_ids, "mit")
    assert back.preprocessing == ours.preprocessing
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in ours.weights.items())


def test_a_folder_that_is_not_empty_stays(ours, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="is not empty; name another"):
        write(ours, tmp_path / "x")
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_weights_without_class_heads_are_told_so(ours, tmp_path):
    write(ours, tmp_path / "x")
    (tmp_path / "x" / "preprocessor_config.json").unlink()
    none = FORMAT._replace(is_class_head=lambda name: False)
    with pytest.raises(CheckpointError, match="have been removed"):
        read_folder(tmp_path / "x", none)
    assert "the paper's" in read_folder(tmp_path / "x", FORMAT).provenance["preprocessing"]
