"""Whatever the layout and wherever it is, the same checkpoint comes out."""

import hashlib
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, save
from deformable_detr.weights.huggingface.reader import write_transformers
from deformable_detr.weights.official.reader import write_official

# The backbone is as published, since no other has an official form; the rest is small.
CONFIG = DeformableDETRConfig(
    hidden_dim=64, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48, num_queries=11, num_classes=3
)


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    return Checkpoint(
        weights=build(CONFIG, load_backbone_weights=False).state_dict(),
        model=CONFIG,
        classes=("cat", "dog", "newt"),
        category_ids=(0, 1, 2),
        preprocessing=Preprocessing(),
        licence="mit",
    )


@pytest.fixture(scope="module")
def places(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    save(checkpoint, folder / "ours.safetensors")
    write_official(checkpoint, folder / "official.pth")
    write_transformers(checkpoint, folder / "theirs")
    return folder


def same(one, other):
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items()
    )


@pytest.mark.parametrize("name", ["ours.safetensors", "official.pth", "theirs", "theirs/model.safetensors"])
def test_every_layout_gives_the_same_checkpoint(places, checkpoint, name):
    loaded = read(places / name)
    assert same(loaded, checkpoint)
    for field in ("model", "classes", "category_ids", "preprocessing", "licence"):
        assert getattr(loaded, field) == getattr(checkpoint, field), field


@pytest.mark.slow
def test_from_a_server_and_from_the_hub(places, checkpoint, server, hub):
    content = (places / "official.pth").read_bytes()
    server.files["/official.pth"] = content
    digest = hashlib.sha256(content).hexdigest()
    assert same(read(f"{server.address}/official.pth", sha256=digest), checkpoint)
    hub("SomeOne/model", {path.name: path.read_bytes() for path in (places / "theirs").iterdir()})
    loaded = read("SomeOne/model")
    assert same(loaded, checkpoint)
    assert loaded.licence == "mit"
    hub("SomeOne/ours", {"model.safetensors": (places / "ours.safetensors").read_bytes()})
    assert same(read("SomeOne/ours"), checkpoint)


def test_what_is_taken_from_a_run_is_said(places, checkpoint, tmp_path):
    save(replace(checkpoint, metrics={"ap": 0.5}), tmp_path / "best.safetensors")
    lines = []

    class Notes:
        def say(self, line):
            lines.append(line)

        def update(self, stage, done, total, details=""):
            pass

    assert read(tmp_path, reporter=Notes()).metrics == {"ap": 0.5}
    assert lines == [f"weights: {tmp_path / 'best.safetensors'}"]
    read(tmp_path / "best.safetensors", reporter=Notes())
    assert len(lines) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*gone.safetensors"):
        read(tmp_path / "gone.safetensors")
