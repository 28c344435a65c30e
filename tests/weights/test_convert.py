import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig, DINOConfig, build
from deformable_detr.weights import convert as converting
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, TrainingState, load, save
from deformable_detr.weights.convert import convert
from deformable_detr.weights.official.reader import write_official
from deformable_detr.weights.read import read_recognised
from tests.weights.tensors import same, usable_weights_of

# Official files know published backbones only; a smaller one does for the others.
PUBLISHED = DeformableDETRConfig(
    hidden_dim=64, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48, num_queries=11, num_classes=3
)
SMALL = replace(PUBLISHED, backbone="test_resnet")
OUTPUTS = {"ours": "x.safetensors", "official": "x.pth", "transformers": "x"}


def checkpoint_of(config):
    torch.manual_seed(0)
    return Checkpoint(
        weights=build(config, load_backbone_weights=False).state_dict(),
        model=config,
        classes=("cat", "dog", "newt"),
        category_ids=(0, 1, 2),
        preprocessing=Preprocessing(),
        metrics={"ap": 0.25},
        provenance={"recipe": "tiny"},
        licence="MIT",
    )


@pytest.fixture(scope="module")
def checkpoint():
    return checkpoint_of(SMALL)


@pytest.fixture(scope="module")
def published():
    return checkpoint_of(PUBLISHED)


@pytest.fixture
def sources(checkpoint, published, tmp_path):
    """What to convert, by the layout it goes to."""
    small, large = tmp_path / "in" / "best.safetensors", tmp_path / "in" / "large.safetensors"
    small.parent.mkdir()
    save(checkpoint, small)
    save(published, large)
    return {"ours": small, "transformers": small, "official": large}


@pytest.fixture
def source(checkpoint, tmp_path):
    path = tmp_path / "in" / "best.safetensors"
    path.parent.mkdir()
    save(checkpoint, path)
    return path


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("through", [pytest.param("official", marks=pytest.mark.slow), "transformers"])
def test_there_and_back_changes_no_bit(sources, checkpoint, published, tmp_path, through):
    original = published if through == "official" else checkpoint
    there = convert(sources[through], tmp_path / OUTPUTS[through], to=through)
    model = build(original.model, load_backbone_weights=False)
    assert there.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    back = convert(there.output, tmp_path / "back.safetensors", to="ours")
    loaded = load(back.output)
    assert same(loaded.weights, original.weights)
    assert (loaded.classes, loaded.licence.upper()) == (original.classes, "MIT")
    assert replace(loaded.model, backbone_weights="hub") == replace(original.model, backbone_weights="hub")
    assert loaded.provenance["converted_from"] == f"{tmp_path.name}/{OUTPUTS[through]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", OUTPUTS[through], "back.safetensors"])


def test_what_a_layout_has_no_place_for_is_said(sources, tmp_path):
    lost = {to: convert(source, tmp_path / OUTPUTS[to], to=to).lost for to, source in sources.items()}
    assert lost["ours"] == lost["official"] == ()
    assert lost["transformers"][-2:] == ("metrics", "provenance")
    for text in ("ap: 0.25", "recipe: tiny", "converted_from: in/best.safetensors"):  # for people they are there
        assert text in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize("to", ["ours", "transformers"])
def test_the_state_of_training_stays_behind_and_that_is_said(checkpoint, tmp_path, to):
    state = TrainingState(progress={"step": 3}, tensors={"exp_avg/x": torch.arange(5.0)})
    save(replace(checkpoint, training=state), tmp_path / "last.safetensors")
    done = convert(tmp_path / "last.safetensors", tmp_path / OUTPUTS[to], to=to)
    assert done.lost[0] == "the state of training"
    assert same(read(done.output).weights, checkpoint.weights)


def test_that_of_an_official_run_too(published, tmp_path):
    write_official(published, tmp_path / "x.pth")
    document = torch.load(tmp_path / "x.pth", weights_only=True)
    torch.save(document | {"optimizer": {"state": {}}}, tmp_path / "run.pth")
    assert convert(tmp_path / "run.pth", tmp_path / "y.safetensors", to="ours").lost == ("the state of training",)


def test_half_precision_keeps_its_values(checkpoint, tmp_path):
    halves = {name: tensor.half() for name, tensor in checkpoint.weights.items()}
    save(replace(checkpoint, weights=halves), tmp_path / "half.safetensors")
    done = convert(tmp_path / "half.safetensors", tmp_path / "x", to="transformers")
    assert "float16, written as float32 of the same values" in done.lost
    assert all(torch.equal(tensor.half(), halves[name]) for name, tensor in read(done.output).weights.items())


@pytest.mark.slow
def test_what_is_there_stays_unless_forced(sources, tmp_path):
    (tmp_path / "x.pth").write_text("mine")
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for to in ("official", "transformers"):
        with pytest.raises(OutputError, match=r"is there already; name another, or write over it with --force"):
            convert(sources[to], tmp_path / OUTPUTS[to], to=to)
    convert(sources["official"], tmp_path / "x.pth", to="official", force=True)
    (folder / "config.json").write_text("{}")
    convert(sources["transformers"], folder, to="transformers", force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert read(folder).classes == read(tmp_path / "x.pth").classes == ("cat", "dog", "newt")


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("x.pth", "ours", r"ends in \.safetensors; name it x\.pth\.safetensors"),
        ("x.safetensors", "official", r"ends in \.pth"),
        ("x.safetensors", "transformers", "is a folder of several files; name a folder"),
        ("in/best.safetensors", "transformers", "is a folder of several files; name a folder"),
        ("folder.pth", "official", "is a folder; name a file"),
    ],
)
def test_outputs_of_the_wrong_kind_are_refused(source, tmp_path, name, to, message):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(OutputError, match=message):
        convert(source, tmp_path / name, to=to, force=True)


@pytest.mark.parametrize(
    ("to", "damage"),
    [("ours", "bit"), ("ours", "missing"), ("ours", "added"), ("official", "bit"), ("transformers", "bit")],
)
def test_what_reads_back_otherwise_is_not_kept(sources, tmp_path, monkeypatch, to, damage):
    real = read_recognised
    name = "decoder.box_heads.0.layers.0.bias"

    def read_wrongly(found):
        loaded = real(found)
        if found.path == sources[to]:
            return loaded
        weights = dict(loaded.weights)
        if damage == "bit":
            weights[name] = weights[name].clone()
            weights[name][5] = -0.0 if weights[name][5] == 0 else -weights[name][5]
        elif damage == "missing":
            del weights[name]
        else:
            weights["more"] = torch.ones(1)
        return replace(loaded, weights=weights)

    monkeypatch.setattr(converting, "read_recognised", read_wrongly)
    before = everything_in(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"was not written: read back, 1 of \d+ tensors are not the same in every"
    ):
        convert(sources[to], tmp_path / OUTPUTS[to], to=to)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("to", OUTPUTS)
def test_a_full_disk_leaves_nothing(sources, tmp_path, monkeypatch, to):
    real = os.fsync

    def full(*_):
        raise OSError(28, "No space left on device")

    before = everything_in(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(sources[to], tmp_path / OUTPUTS[to], to=to)
    monkeypatch.setattr(os, "fsync", real)
    assert everything_in(tmp_path) == before


def test_models_that_a_layout_does_not_have_are_refused(checkpoint, tmp_path):
    config = replace(SMALL, features="per_image")
    save(replace(checkpoint, model=config), tmp_path / "a.safetensors")
    for to, message in (
        ("official", f"{tmp_path / 'x.pth'}: .* no backbone test_resnet"),
        ("transformers", "features"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "a.safetensors", tmp_path / OUTPUTS[to], to=to)
    assert everything_in(tmp_path) == ["a.safetensors"]


def test_transformers_has_no_dino(checkpoint, tmp_path):
    config = DINOConfig(
        backbone="test_resnet", hidden_dim=32, num_heads=4, encoder_layers=1, decoder_layers=1, ffn_dim=24,
        num_queries=11, num_classes=3,
    )  # fmt: skip
    save(replace(checkpoint, model=config, weights=usable_weights_of(config)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="transformers has no model like this one, a dino"):
        convert(tmp_path / "a.safetensors", tmp_path / "x", to="transformers")
    assert everything_in(tmp_path) == ["a.safetensors"]


def test_weights_that_do_not_fit_their_settings_are_refused(checkpoint, tmp_path):
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if not name.startswith("encoder.")}
    save(replace(checkpoint, weights=weights), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="ours")


def test_a_folder_that_cannot_be_made_is_named(source):
    with pytest.raises(OutputError, match="cannot write"):
        convert(source, Path(source) / "x.safetensors", to="ours")


@pytest.mark.parametrize("to", ["official", "transformers"])
@pytest.mark.parametrize(
    ("setting", "tensor"),
    [({"query_groups": 2}, "group_box_heads"), ({"denoising_queries": 5}, r"denoising\.label_embed")],
)
def test_tensors_that_training_alone_needs_have_no_place_in_other_layouts(tmp_path, to, setting, tensor):
    save(checkpoint_of(replace(SMALL, variant="two_stage", **setting)), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"no place for tensors that training alone needs, .*{tensor}"):
        convert(tmp_path / "x.safetensors", tmp_path / "out" / OUTPUTS[to], to=to)
    assert not (tmp_path / "out" / OUTPUTS[to]).exists()
