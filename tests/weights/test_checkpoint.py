import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.models import build
from deformable_detr.models.interface import GivenModelConfig
from deformable_detr.weights import checkpoint as checkpoints
from deformable_detr.weights.checkpoint import Checkpoint, TrainingState, build_model, load, load_weights, save, writer

# A network of one's own, of which nobody knows the tensors.
GIVEN = GivenModelConfig(class_name="nets.Own", num_classes=2)


@pytest.fixture
def checkpoint(tiny_config):
    config = replace(tiny_config.model, num_classes=2)
    return Checkpoint(
        weights=build(config).state_dict(),
        model=config,
        classes=("cat", "dög"),
        category_ids=(17, 3),
        preprocessing=tiny_config.preprocessing,
        metrics={"ap": 0.25, "ap_small": -1.0},
        provenance={"recipe": "tiny", "data": "pets"},
        licence="CC0-1.0",
        training=TrainingState(progress={"step": 3}, tensors={"exp_avg/x": torch.arange(5.0)}),
    )


@pytest.fixture
def path(checkpoint, tmp_path):
    save(checkpoint, tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_is_loaded(checkpoint, path):
    for training in (False, True):
        loaded = load(path, training=training)
        assert equal(loaded.weights, checkpoint.weights)
        for name in ("model", "classes", "category_ids", "preprocessing", "metrics", "licence"):
            assert getattr(loaded, name) == getattr(checkpoint, name), name
        assert checkpoint.provenance.items() <= loaded.provenance.items()
        assert {"deformable_detr", "torch"} <= loaded.provenance.keys()
    assert load(path).training is None
    assert loaded.training.progress == {"step": 3}
    assert equal(loaded.training.tensors, checkpoint.training.tensors)


def test_weights_lie_under_their_plain_names(checkpoint, path):
    assert checkpoint.weights.keys() <= load_file(path).keys()
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["deformable_detr"])
    assert header["schema_version"] == 1
    assert header["classes"] == ["cat", "dög"]


def test_the_model_comes_back(checkpoint, path):
    assert equal(build_model(load(path), path).state_dict(), checkpoint.weights)


def test_parameters_that_share_memory_are_written(checkpoint, tmp_path):
    shared = torch.arange(6.0)
    weights = {"a": shared, "b": shared, "c": shared.view(2, 3).T}
    save(replace(checkpoint, weights=weights, model=GIVEN, training=None), tmp_path / "shared")
    assert equal(load(tmp_path / "shared").weights, weights)


def test_what_is_a_copy_already_is_not_copied_again(checkpoint, tmp_path):
    weights = {"a": torch.zeros(3, 2), "b": torch.zeros(2)}
    plain = replace(checkpoint, weights=weights, model=GIVEN, training=None)
    copied, borrowed = writer(plain), writer(plain, copy=False)
    weights["a"].fill_(1)
    for write, name in ((copied, "copied"), (borrowed, "borrowed")):
        write(tmp_path / name)
    assert not load(tmp_path / "copied").weights["a"].any()
    assert load(tmp_path / "borrowed").weights["a"].all()


def test_files_that_are_no_checkpoint_are_named(tmp_path, path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*nope"):
        load(tmp_path / "nope")
    with pytest.raises(CheckpointError, match=r"a run folder has best\.safetensors"):
        load(tmp_path)
    (tmp_path / "text").write_text("not tensors")
    with pytest.raises(CheckpointError, match="text is not a whole safetensors file"):
        load(tmp_path / "text")
    save_file({"x": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of deformable-detr.*--backbone-weights"):
        load(tmp_path / "other")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_off_anywhere_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load(path)


def rewrite(path, **changes):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["deformable_detr"])
    for name, value in changes.items():
        if value is None:
            del header[name]
        else:
            header[name] = value
    save_file(load_file(path), path, {"deformable_detr": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this deformable-detr .* reads up to 1; a newer release"),
        ({"schema_version": "x"}, "no schema version that ever was"),
        ({"classes": ["cat"]}, "1 class names and 2 category ids for a model of 2 classes"),
        ({"classes": None}, "incomplete: 'classes'"),
        ({"classes": 3}, "incomplete"),
        ({"model": {"name": "detr9", "config": {}}}, "of a model 'detr9'; this version knows deformable_detr"),
        ({"model": {"name": "deformable_detr", "config": {"num_querys": 3}}}, "did you mean num_queries"),
        ({"preprocessing": {"short_side": -1}}, "c.safetensors: "),
    ],
)
def test_a_description_that_cannot_be_is_refused(path, changes, message):
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_description_that_is_not_json_is_refused(path):
    save_file(load_file(path), path, {"deformable_detr": "{"})
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(path)


def test_only_last_can_be_resumed_from(checkpoint, tmp_path):
    save(replace(checkpoint, training=None), tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"resume from the run's last\.safetensors"):
        load(tmp_path / "best", training=True)


def test_keys_that_do_not_fit_are_listed_and_counted(checkpoint):
    weights = dict(checkpoint.weights)
    model = build(checkpoint.model)
    dropped = [name for name in weights if name.startswith("encoder.")]
    for name in dropped:
        del weights[name]
    weights["head.extra"] = torch.ones(3)
    weights["pyramid.level_embed"] = torch.ones(7, 32)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, "some file")
    message = str(caught.value)
    assert f"some file does not fit the model: {len(dropped)} missing: {dropped[0]}, {dropped[1]}" in message
    assert f" and {len(dropped) - 3} more; 1 unexp" in message
    assert "1 unexpected: head.extra" in message
    assert "1 of another shape: pyramid.level_embed is [7, 32] there and [2, 32] here" in message


def test_weights_of_another_class_count_name_both(checkpoint):
    other = build(replace(checkpoint.model, num_classes=5))
    with pytest.raises(CheckpointError, match=r"is \[2, 32\] there and \[5, 32\] here"):
        load_weights(other, checkpoint.weights, "x")


def test_a_full_disk_is_an_output_error_and_keeps_the_old_file(checkpoint, path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("deformable_detr.core.torch_files.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        save(checkpoint, path)
    assert path.read_bytes() == before


# Headers as releases wrote them. Never changed: a file of every schema must load in every later release.
HEADERS = {
    1: {
        "schema_version": 1,
        "model": {
            "name": "deformable_detr",
            "config": {
                "num_classes": 2,
                "variant": "two_stage",
                "backbone": "test_resnet",
                "backbone_weights": "none",
                "dilation": False,
                "frozen_stages": 0,
                "frozen_batch_norm": False,
                "num_levels": 2,
                "hidden_dim": 32,
                "num_heads": 2,
                "encoder_layers": 1,
                "decoder_layers": 2,
                "encoder_points": 2,
                "decoder_points": 3,
                "ffn_dim": 48,
                "num_queries": 11,
                "dropout": 0.1,
                "features": "padded",
                "proposals": "paper",
            },
        },
        "classes": ["cat", "dog"],
        "category_ids": [17, 3],
        "preprocessing": {
            "short_side": 48,
            "max_side": 80,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "metrics": {"ap": 0.25, "ap_small": -1.0},
        "provenance": {"deformable_detr": "0.1.0.dev0", "torch": "2.15.0", "recipe": "tiny"},
        "licence": "CC0-1.0",
    }
}


def write_with_header(header, weights, path):
    save_file(dict(weights), path, {"deformable_detr": json.dumps(header)})


def test_there_is_a_header_of_every_schema():
    assert list(HEADERS) == list(range(1, checkpoints.SCHEMA_VERSION + 1))


@pytest.mark.parametrize("version", HEADERS)
def test_files_of_every_schema_load(checkpoint, tmp_path, version):
    header = HEADERS[version]
    write_with_header(header, checkpoint.weights, tmp_path / "old")
    loaded = load(tmp_path / "old")
    assert equal(build_model(loaded, "old").state_dict(), checkpoint.weights)
    settings = {name: getattr(loaded.model, name) for name in header["model"]["config"]}
    assert settings == header["model"]["config"]
    assert (loaded.classes, loaded.category_ids) == (("cat", "dog"), (17, 3))
    assert (loaded.preprocessing.short_side, loaded.preprocessing.max_side) == (48, 80)
    assert (loaded.metrics, loaded.licence) == ({"ap": 0.25, "ap_small": -1.0}, "CC0-1.0")
    assert loaded.provenance["recipe"] == "tiny"


def test_settings_that_came_later_are_what_files_without_them_meant(checkpoint, tmp_path):
    header = json.loads(json.dumps(HEADERS[1]))
    for name in ("features", "proposals"):  # younger than the published models
        del header["model"]["config"][name]
    header["added_by_somebody"] = {"x": 1}
    write_with_header(header, checkpoint.weights, tmp_path / "old")
    loaded = load(tmp_path / "old")
    assert (loaded.model.features, loaded.model.proposals) == ("padded", "paper")


def test_what_is_written_now_has_the_newest_schema_and_all_its_entries(checkpoint):
    header = checkpoints.to_header(checkpoint)
    newest = HEADERS[checkpoints.SCHEMA_VERSION]
    assert header.keys() == newest.keys()
    assert header["schema_version"] == newest["schema_version"]
    assert newest["model"]["config"].keys() <= header["model"]["config"].keys()
    assert newest["preprocessing"].keys() <= header["preprocessing"].keys()


def test_a_state_to_resume_from_is_finite_too(checkpoint, tmp_path):
    bad = TrainingState(progress={"step": 3}, tensors={"trained/x": torch.tensor([1.0, float("nan")])})
    save(replace(checkpoint, training=bad), tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"last: the weights are not finite, training/trained/x is the first"):
        load(tmp_path / "last", training=True)
    assert load(tmp_path / "last").training is None  # for use it is not needed


def test_a_state_to_resume_from_is_a_table(path):
    rewrite(path, training=[3])
    with pytest.raises(CheckpointError, match="does not say how far the run was"):
        load(path, training=True)


def test_numbers_of_another_type_do_not_fit(checkpoint):
    model = build(checkpoint.model)
    counter = next(name for name in checkpoint.weights if name.endswith("num_batches_tracked"))
    for name, dtype, own in (("pyramid.level_embed", torch.int64, "float32"), (counter, torch.float32, "int64")):
        wrong = checkpoint.weights | {name: checkpoint.weights[name].to(dtype)}
        with pytest.raises(
            CheckpointError, match=rf"1 of another type: {name} is {str(dtype)[6:]} there and {own} here"
        ):
            load_weights(model, wrong, "x")


@pytest.mark.parametrize("version", [0, -1, True, 10**4000])
def test_versions_that_never_were_are_refused(path, version):
    rewrite(path, schema_version=version)
    with pytest.raises(CheckpointError, match="schema"):
        load(path)
