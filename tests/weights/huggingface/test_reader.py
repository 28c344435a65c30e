"""Folders go to transformers and back; what it builds itself is read and says the same."""

import json
import os
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.model.peer import peer
from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.checkpoint import Checkpoint, build_model
from deformable_detr.weights.huggingface.reader import read_transformers, write_transformers

SMALL = DeformableDETRConfig(
    num_classes=7, backbone="resnet18", hidden_dim=64, num_heads=4, encoder_layers=2, decoder_layers=3,
    encoder_points=3, decoder_points=5, ffn_dim=96, num_queries=11,
)  # fmt: skip
CONFIGS = {
    "single_scale": replace(SMALL, num_levels=1),
    "single_scale_dc5": replace(SMALL, num_levels=1, dilation=True),
    "base": SMALL,
    "refine": replace(SMALL, variant="refine"),
    "two_stage": replace(SMALL, variant="two_stage"),
}
CLASSES = ("unused-0", "cat", "dog", "Hund", "bird of prey", "猫", "tree")


@pytest.fixture(scope="module")
def transformers():
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affairs
        yield pytest.importorskip("transformers")
    if before is None:
        del os.environ["HF_HUB_OFFLINE"]
    else:
        os.environ["HF_HUB_OFFLINE"] = before


def shaken(model):  # nothing is left at a value that another parameter shares
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype != torch.float32:
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1 or any(part in name for part in ("head", "_embed", "sampling", "attention_weights")):
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def checkpoint_of(config):
    return Checkpoint(
        weights=shaken(build(config, load_backbone_weights=False)).state_dict(),
        model=config,
        classes=CLASSES,
        category_ids=(0, 3, 17, 18, 21, 44, 90),
        preprocessing=Preprocessing(short_side=96, max_side=141, mean=(0.1, 0.2, 0.3), std=(0.7, 0.8, 0.9)),
        licence="Apache-2.0",
    )


def assert_alike(ours, theirs):
    """Two images of different sizes in one padded batch."""
    images = torch.randn(2, 3, 128, 160)
    padding_mask = torch.zeros(2, 128, 160, dtype=torch.bool)
    padding_mask[0, :, 101:] = True
    padding_mask[1, 75:] = True
    images.masked_fill_(padding_mask[:, None], 0.0)
    with torch.no_grad():
        one = ours.eval()(images, padding_mask).final
        other = theirs.eval()(images, pixel_mask=(~padding_mask).long())
    assert one.logits.std() > 0.05  # else anything is equal to anything
    assert one.boxes.std(1).min() > 0.005
    torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.pred_boxes, one.boxes, rtol=0, atol=1e-4)


def edit(path, **changes):
    """A JSON file with some entries of it changed; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of each variant."""
    torch.manual_seed(3)
    parent = tmp_path_factory.mktemp("folders")
    for name, config in CONFIGS.items():
        write_transformers(checkpoint_of(config), parent / name)
    return parent


@pytest.fixture
def folder(written, tmp_path):
    """One to spoil."""
    return shutil.copytree(written / "base", tmp_path / "base")


MORE = {
    "two_levels": replace(SMALL, num_levels=2),
    "dilated_four_levels": replace(SMALL, dilation=True),
    "activation_in_batch_norm": replace(SMALL, backbone="test_efficientnet"),
    "no_batch_norm": replace(SMALL, backbone="test_convnext"),
    "from_scratch": replace(SMALL, backbone_weights="none", frozen_stages=0, frozen_batch_norm=False),
}


# What is special about them one of the others or tests/weights/huggingface/test_keys.py has, too.
SLOW = ("dilated_four_levels", "no_batch_norm", "single_scale", "refine", "two_levels", "from_scratch")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in CONFIGS | MORE if name not in SLOW),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_ours_to_transformers_and_back(transformers, tmp_path, name):
    ours = checkpoint_of((CONFIGS | MORE)[name])
    write_transformers(ours, tmp_path / "model")
    theirs, found = transformers.DeformableDetrForObjectDetection.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(found.values()), found
    assert theirs.config.id2label[4] == "bird of prey"
    assert_alike(build_model(ours, tmp_path), theirs)

    theirs.save_pretrained(tmp_path / "again")
    transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil").save_pretrained(
        tmp_path / "again"
    )
    for folder in ("model", "again"):
        back = read_transformers(tmp_path / folder)
        assert back.model == ours.model
        assert back.classes == ours.classes
        assert back.category_ids == ours.category_ids
        assert back.preprocessing == ours.preprocessing
        assert back.weights.keys() == ours.weights.keys()
        assert all(torch.equal(back.weights[key], tensor) for key, tensor in ours.weights.items())
        assert "settings left aside" not in back.provenance
    assert read_transformers(tmp_path / "model").licence == "apache-2.0"


@pytest.mark.slow
def test_the_papers_own_size(transformers, tmp_path):
    ours = replace(
        checkpoint_of(DeformableDETRConfig(variant="two_stage", num_classes=7)), preprocessing=Preprocessing()
    )
    write_transformers(ours, tmp_path / "model")
    load = transformers.DeformableDetrForObjectDetection.from_pretrained
    assert not any(load(tmp_path / "model", output_loading_info=True)[1].values())
    back = read_transformers(tmp_path / "model")
    assert back.model == ours.model
    assert all(torch.equal(back.weights[key], tensor) for key, tensor in ours.weights.items())
    build_model(back, tmp_path)


NATIVE = {
    "bottleneck": {"depths": [2, 2, 2, 2]},
    "basic": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
}


@pytest.mark.parametrize(
    ("name", "native"), [*((name, None) for name in CONFIGS), ("single_scale", "bottleneck"), ("two_stage", "basic")]
)
def test_what_transformers_built_and_saved(transformers, tmp_path, name, native):
    config = CONFIGS[name]
    settings = {"id2label": {0: "N/A", 1: "cat", 2: "dog", 3: "cat", 4: "N/A", 5: "", 6: "cow"}}
    if native:
        stages = ["stage2", "stage3", "stage4"] if config.num_levels > 1 else ["stage4"]
        settings["backbone_config"] = transformers.ResNetConfig(**NATIVE[native], out_features=stages)
    theirs = shaken(peer(config, **settings))
    theirs.save_pretrained(tmp_path)
    read = read_transformers(tmp_path)
    assert read.model == replace(config, backbone="resnet26" if native == "bottleneck" else "resnet18")
    assert read.classes == ("unused-0", "cat", "dog", "cat (3)", "unused-4", "unused-5", "cow")
    assert read.category_ids == tuple(range(7))
    assert read.preprocessing == Preprocessing()
    assert read.provenance["preprocessing"].startswith("the paper's")
    assert_alike(build_model(read, tmp_path), theirs)


@pytest.mark.parametrize("form", ["shards", pytest.param("bin", marks=pytest.mark.slow), "half"])
def test_other_forms_of_the_same_weights(written, folder, form):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "shards":
        names = sorted(weights)
        table = {name: f"model-0000{1 + position % 3}-of-00003.safetensors" for position, name in enumerate(names)}
        for file in set(table.values()):
            save_file({name: weights[name] for name in names if table[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    elif form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors")
    expected, read = read_transformers(written / "base").weights, read_transformers(folder).weights
    assert read.keys() == expected.keys()
    for name, tensor in read.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].half().float() if form == "half" else expected[name])


def test_a_licence_of_its_own_and_metrics_stand_in_the_card(tmp_path, written):
    ours = replace(read_transformers(written / "base"), licence="Zoo: ask first", metrics={"ap50": 0.25})
    write_transformers(ours, tmp_path / "model")
    assert read_transformers(tmp_path / "model").licence == "Zoo: ask first"
    assert "- ap50: 0.2500" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("card", ["", "# A title\n---\nlicense: mit\n---\n", "---\nlicense: [\n---\n", "---\nno end"])
def test_a_card_without_a_licence(folder, card):
    (folder / "README.md").write_text(card)
    assert read_transformers(folder).licence == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [({"features": "per_image"}, "always see the padded batch"), ({"proposals": "valid"}, "proposals in the padding")],
)
def test_what_transformers_cannot_do_is_not_written(tmp_path, change, message):
    ours = Checkpoint(
        weights={},
        model=replace(CONFIGS["two_stage"], **change),
        classes=CLASSES,
        category_ids=tuple(range(7)),
        preprocessing=Preprocessing(),
    )
    with pytest.raises(CheckpointError, match=message):
        write_transformers(ours, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_half_written(written, tmp_path, monkeypatch):
    ours = read_transformers(written / "base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="full is not empty"):
        write_transformers(ours, tmp_path / "full")
    with pytest.raises(OutputError, match=r"thesis\.tex is a file"):
        write_transformers(ours, tmp_path / "full" / "thesis.tex")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deformable_detr.core.torch_files.save_file", no_space)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(OutputError, match=f"cannot write .*{name}: No space left"):
            write_transformers(ours, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_an_empty_folder_is_filled(written, tmp_path):
    write_transformers(read_transformers(written / "base"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_transformers(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"is not a folder of transformers: it has no config\.json"),
        ("model.safetensors", r"holds no weights: there is none of model\.safetensors"),
    ],
)
def test_a_file_that_is_not_there(folder, name, message):
    (folder / name).unlink()
    refused(folder, message)


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[1]", "holds a JSON list")])
def test_a_config_that_is_none(folder, text, message):
    (folder / "config.json").write_text(text)
    refused(folder, message)


@pytest.mark.parametrize("kind", ["detr", "rt_detr", "grounding-dino"])
def test_another_model(folder, kind):
    edit(folder / "config.json", model_type=kind)
    refused(folder, f"model of type '{kind}', not 'deformable_detr'; transformers' Auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda held: held.update({"class_embed.1.bias": held["class_embed.0.bias"] + 1}),
            "class_embed.1.bias should be a copy of class_embed.0.bias",
        ),
        (lambda held: [held.pop("model.level_embed")], "1 missing: pyramid.level_embed"),
        (
            lambda held: [held.pop(name) for name in list(held) if "encoder.layers.1" in name],
            r"\d\d missing: encoder.layers.1.* and \d\d more",
        ),
        (lambda held: held.update(a=torch.ones(1), b=torch.ones(1)), "'a' is not a parameter .*, nor are 1 more, such"),
        (
            lambda held: held.update({"model.level_embed": torch.ones(3, 64)}),
            r"1 of another shape: pyramid.level_embed is \[3, 64\] there and \[4, 64\] here",
        ),
    ],
)
def test_keys_that_do_not_fit(folder, change, message):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")
    refused(folder, message)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "html"])
def test_a_damaged_file(folder, damage):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "header": (2**60).to_bytes(8, "little") + whole[8:],
            "empty": b"",
            "html": b"<!DOCTYPE html><html>Not found</html>",
        }[damage]
    )
    refused(folder, "is not a whole safetensors file")


class _Code:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("content", ["code", "list", "noise"])
def test_a_bin_file_that_is_no_table_of_tensors(folder, content, capsys):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if content == "noise":
        path.write_bytes(b"noise" * 99)
    else:
        torch.save({"weight": _Code()} if content == "code" else [torch.ones(1)], path)
    messages = {
        "list": "holds no table",
        "noise": "is a text, not weights",
        "code": "reading it would run",
    }
    refused(folder, messages[content])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": "part.safetensors", "b": "gone.safetensors"}, r"names 2 files; 1 are not there: gone\.safetensors"),
        ({"a": "../model.safetensors"}, "has no weight_map that names files beside it"),
        (None, "has no weight_map"),
        ({"a": "part.safetensors"}, "names 1 tensors that its files do not hold: a"),
    ],
)
def test_shards_that_are_not_there(folder, table, message):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    refused(folder, message)


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        ("base", "refine", "missing: decoder.box_heads.1"),
        ("refine", "base", "should be a copy of .*; is this of another variant"),
        ("refine", "two_stage", "missing: query_source.memory_proj"),
        ("two_stage", "refine", "missing: query_source.embedding"),
        ("single_scale", "base", "missing: pyramid.projections.1.*of another shape"),
        ("base", "single_scale_dc5", "unexpected: pyramid.projections"),
    ],
)
def test_weights_of_one_variant_with_the_config_of_another(written, tmp_path, weights, config, message):
    shutil.copytree(written / weights, tmp_path / "mixed")
    shutil.copy(written / config / "config.json", tmp_path / "mixed" / "config.json")
    refused(tmp_path / "mixed", message)


@pytest.mark.parametrize("name", CONFIGS)
def test_class_heads_that_were_removed_are_said_to_be(written, tmp_path, name):
    folder = shutil.copytree(written / name, tmp_path / name)
    path = folder / "model.safetensors"
    save_file({key: one for key, one in load_file(path).items() if "class_embed" not in key}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its class heads \(class_embed\.\*\) have been rem"):
        read_transformers(folder)


def test_projections_of_other_shapes_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("self_attn.k_proj.weight") and "decoder" in key)
    for other in (torch.ones(3, 5), torch.ones(())):
        save_file(tensors | {name: other}, path)
        with pytest.raises(CheckpointError, match=r"needs projections of q, k and v of one shape, not of {"):
            read_transformers(folder)


def test_a_processor_that_does_something_else(folder):
    edit(folder / "preprocessor_config.json", resample=3)
    refused(folder, r"preprocessor_config\.json: resample is 3")


def test_unknown_settings_are_named(folder):
    edit(folder / "config.json", norm_type="rms")
    edit(folder / "preprocessor_config.json", sharpen=True)
    assert read_transformers(folder).provenance["settings left aside"] == "norm_type, sharpen"
