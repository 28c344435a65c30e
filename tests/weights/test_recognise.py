import io
import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import MODELS, DeformableDETRConfig, DETRConfig, DINOConfig, build
from deformable_detr.weights.checkpoint import Checkpoint, save
from deformable_detr.weights.detr.keys import to_official_detr_keys
from deformable_detr.weights.detr.settings import looks_like_detr
from deformable_detr.weights.dino.keys import looks_like_dino, to_authors_keys
from deformable_detr.weights.huggingface.keys import to_transformers_keys
from deformable_detr.weights.official.keys import to_official_keys
from deformable_detr.weights.read import _OFFICIAL
from deformable_detr.weights.recognise import (
    _PUBLISHED,
    TRANSFORMERS_TYPES,
    PublishedModel,
    Recognised,
    foreign_model,
    published_model,
    recognise,
    transformers_type,
)

# Settings of each published model, its name, and the names that its writer gives.
CLASSES = {
    DeformableDETRConfig: ("Deformable DETR", to_official_keys),
    DETRConfig: ("DETR", lambda weights, _: to_official_detr_keys(weights)),
    DINOConfig: ("DINO", to_authors_keys),
}


@pytest.fixture
def ours(tiny_config, tmp_path):
    config = replace(tiny_config.model, num_classes=2)
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    (path.parent / "config.json").write_text(json.dumps(to_dict(tiny_config)))
    save(
        Checkpoint(
            weights=build(config).state_dict(),
            model=config,
            classes=("cat", "dog"),
            category_ids=(1, 2),
            preprocessing=tiny_config.preprocessing,
        ),
        path,
    )
    return path


@pytest.fixture
def theirs(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "deformable_detr"}')
    save_file({"model.encoder.layers.0.fc1.bias": torch.ones(3)}, folder / "model.safetensors")
    return folder


def test_a_file_of_ours_whatever_its_name(ours):
    assert recognise(ours) == Recognised("ours", ours)
    other = ours.rename(ours.with_name("weights.bin"))
    assert recognise(other) == Recognised("ours", other)


def test_a_run_folder_stands_for_its_best_or_else_its_last(ours):
    run = ours.parent
    last = run / "last.safetensors"
    last.write_bytes(ours.read_bytes())
    assert recognise(run) == Recognised("ours", ours)
    ours.unlink()
    assert recognise(run) == Recognised("ours", last)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"run that has no weights yet: it has no best\.safetensors"):
        recognise(run)


def test_a_folder_of_transformers_and_the_files_in_it(theirs):
    expected = Recognised("transformers", theirs)
    assert recognise(theirs) == recognise(theirs / "model.safetensors") == expected
    (theirs / "model.safetensors").unlink()
    torch.save({"x": torch.ones(2)}, theirs / "pytorch_model.bin")
    assert recognise(theirs) == recognise(theirs / "pytorch_model.bin") == expected


def test_weights_of_ours_alone_in_a_folder(ours, tmp_path):
    folder = tmp_path / "cloned"
    folder.mkdir()
    path = ours.rename(folder / "model.safetensors")
    assert recognise(folder) == Recognised("ours", path)


@pytest.mark.parametrize("model_type", ["conditional_detr", "rt_detr", "yolos"])
def test_a_folder_of_another_model_is_named(theirs, model_type):
    (theirs / "config.json").write_text(json.dumps({"model_type": model_type}))
    message = f"holds a model of another kind, '{model_type}'; transformers reads .* here there are 'deformable_"
    for path in (theirs, theirs / "model.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            recognise(path)


def test_every_model_of_transformers_that_is_known(theirs):
    for model_type in TRANSFORMERS_TYPES:
        (theirs / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert recognise(theirs) == Recognised("transformers", theirs)
        assert transformers_type(theirs) == model_type


def test_official_names_in_safetensors_are_sent_to_pth(tmp_path):
    deformable = {
        "transformer.level_embed": 2,
        "class_embed.0.bias": 1,
        "transformer.decoder.layers.0.linear1.weight": 2,
        "backbone.0.body.layer1.0.conv2.weight": 4,
        "query_embed.weight": 2,
    }
    dense = ("transformer.decoder.layers.0.multihead_attn.in_proj_weight", "input_proj.weight")
    dino = [*deformable, "transformer.tgt_embed.weight", "transformer.enc_output.weight"]
    for names, model in ((deformable, "Deformable DETR"), (dense, "DETR"), (dino, "DINO")):
        save_file({name: torch.ones(2) for name in names}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=f"holds a published {model}, which is read from .pth files: "):
            recognise(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", CLASSES)
def test_names_that_our_writers_give_are_those_of_one_model_alone(kind):
    config = kind(encoder_layers=1, decoder_layers=2)
    with torch.device("meta"):
        own = MODELS.build(config, load_backbone_weights=False).state_dict()
    names = set(CLASSES[kind][1](own, config))
    assert published_model(names) == CLASSES[kind][0]
    if kind is not DINOConfig:
        assert not looks_like_dino(names)
    assert looks_like_detr(names) == (kind is DETRConfig)


RECORDED = {
    "detr/keys_r50.json": "DETR",
    "dino/keys_4scale.json": "DINO",
    "model/keys_plain.json": "Deformable DETR",
    "model/keys_two_stage.json": "Deformable DETR",
}


@pytest.mark.parametrize("file", RECORDED)
def test_names_of_the_published_models(file):
    path = Path(__file__).parents[3] / "shared" / "checks" / file
    if not path.is_file():
        pytest.skip("no recorded names beside this checkout")
    names = set(json.loads(path.read_text()))
    assert published_model(names) == RECORDED[file]
    assert looks_like_detr(names) == (RECORDED[file] == "DETR")
    assert looks_like_dino(names) == (RECORDED[file] == "DINO")


def test_every_published_model_has_a_reader():
    assert set(get_args(PublishedModel)) == set(_OFFICIAL) == set(_PUBLISHED)


@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_pytorch_go_to_the_official_reader(tmp_path, new_format):
    path = tmp_path / "r50.pt"
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=new_format)
    assert recognise(path) == Recognised("official", path)


def test_a_folder_with_nothing_in_it(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder without weights"):
        recognise(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        recognise(tmp_path / "nope")


def picture(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (picture("PNG"), "is a picture; weights come first, then images"),
        (picture("JPEG"), "is a picture"),
        (picture("WEBP"), "is a picture"),
        (picture("BMP"), "is a picture"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "is an HDF5 file"),
        (b"GGUF" + bytes(80), "is a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(80), "is compressed with gzip; unpack it first"),
        (b"\n<!doctype html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b'{\n "model_type": "detr"}' + bytes(80), "is JSON, not weights"),
        (b"\x08\x08\x12\x07pytorch\x1a\x032.0" + bytes(80), "is an ONNX model"),
        (
            struct.pack("<Q", 2**62) + b"{" + bytes(80),
            "it has 89 bytes, its header alone should have 4611686018427387904",
        ),
        (struct.pack("<Q", 9) + b'{"a": 1, ' + bytes(80), "its header cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_is(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        recognise(path)
    assert str(path) in str(caught.value)


def test_noise_by_its_name(tmp_path):
    for name in ("model.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="is an ONNX model"):
        recognise(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        recognise(tmp_path / "model.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_header_that_is_cut_off_is_refused(ours, share):
    ours.write_bytes(ours.read_bytes()[: int(share * ours.stat().st_size)])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        recognise(ours)


def test_a_zip_without_weights_goes_where_zips_are_explained(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert recognise(tmp_path / "a.zip").layout == "official"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer1.0.conv1.weight"], "it looks like a ResNet alone; train with --backbone-weights"),
        (["stem.conv.weight"], "does not say what model it is of; weights of a backbone go to --backbone-weights"),
        (["model.encoder.layers.0.x"], r"a model of transformers; keep config\.json beside it"),
        (["model.0.conv.weight"], "a YOLO of ultralytics"),
    ],
)
def test_other_safetensors_are_told_what_they_are(tmp_path, names, message):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        recognise(tmp_path / "x.safetensors")


RESNET = ["backbone.0.body.conv1.weight", "backbone.0.body.layer1.0.conv1.weight"]


NAMES = {
    "relative of DETR with dense attention": [
        "transformer.encoder.layers.0.self_attn.in_proj_weight",
        "transformer.decoder.norm.weight",
        "class_embed.weight",
        "bbox_embed.layers.0.weight",
        "input_proj.weight",
        *RESNET,
    ],
    "segmentation head": ["detr.transformer.level_embed", "detr.class_embed.0.bias", "mask_head.lay1.weight"],
    "learned position": ["transformer.level_embed", "class_embed.0.bias", "backbone.1.row_embed.weight", *RESNET],
    "DINO": [
        "transformer.level_embed",
        "transformer.tgt_embed.weight",
        "transformer.decoder.ref_point_head.layers.0.weight",
        "class_embed.0.weight",
        "label_enc.weight",
    ],
    "DAB-DETR": ["transformer.decoder.ref_point_head.layers.0.weight", "refpoint_embed.weight", "class_embed.weight"],
    "detrex": ["backbone.stem.conv1.weight", "neck.convs.0.conv.weight", "transformer.level_embeds"],
    "mmdetection": ["backbone.layer1.0.conv1.weight", "neck.convs.0.conv.weight", "bbox_head.cls_branches.0.weight"],
    "detectron2": ["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"],
    "YOLO": ["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_relatives_are_known(kind):
    assert kind in foreign_model(NAMES[kind])


def test_a_resnet_alone_is_what_torchvision_has():
    with torch.device("meta"):
        names = torchvision.models.resnet50(weights=None).state_dict()
    assert foreign_model(names) == "a ResNet alone; train with --backbone-weights FILE to start from it"


def test_this_model_is_nobody_elses():
    for variant in ("base", "refine", "two_stage"):
        config = DeformableDETRConfig(variant=variant)
        with torch.device("meta"):
            own = build(config, load_backbone_weights=False).state_dict()
        assert foreign_model(to_official_keys(own, config)) is None
        assert "a model of transformers" in foreign_model(to_transformers_keys(own, config))
    assert foreign_model([]) is None
    assert foreign_model(["fc.weight"]) is None


def test_a_published_dino_as_safetensors_is_told_how_to_be_read(tmp_path):
    names = ("transformer.tgt_embed.weight", "transformer.enc_output.weight", "label_enc.weight")
    save_file({name: torch.ones(2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a published DINO, which is read from \.pth files: torch\.save"):
        recognise(tmp_path / "x.safetensors")
