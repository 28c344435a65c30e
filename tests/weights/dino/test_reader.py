"""Published checkpoints of DINO: of its authors, of detrex and of OpenMMLab, and the authors' layout back again."""

import argparse
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

import deformable_detr
from deformable_detr.core.errors import CheckpointError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.coco_classes import COCO_CLASSES
from deformable_detr.weights.convert import convert
from deformable_detr.weights.dino.keys import key_map, sizes_of, to_authors_keys
from deformable_detr.weights.dino.reader import dino_from_document, write_dino
from deformable_detr.weights.dino.settings import to_authors_args
from deformable_detr.weights.official.document import parameter_names
from deformable_detr.weights.recognise import published_model
from tests.weights.tensors import same, weights_of

CFG = "positional_encoding=dict(num_feats=32, normalize=True, offset=-0.5, temperature=10000)"


def training_run(theirs, config, **more):
    """Everything that the authors' main.py saves."""
    args = argparse.Namespace(**to_authors_args(config), lr=1e-4, lr_backbone_names=["backbone.0"], output_dir="x")
    return {
        "model": theirs,
        "optimizer": {"state": {}},
        "lr_scheduler": {"gamma": 0.1},
        "epoch": 11,
        "args": args,
    } | more


def of_others(weights, config, source):
    """As detrex or OpenMMLab would have the same weights: 80 classes, one row of the label table less."""
    names = key_map(source, sizes_of(config))
    theirs = {names.to_theirs(name): tensor for name, tensor in weights.items()}
    table = names.to_theirs("denoising.label_embed.weight")
    theirs[table] = theirs[table][:-1]
    return theirs


def expected(weights, *, biases=True):
    """Weights as read from `of_others`."""
    whole = dict(weights)
    whole["denoising.label_embed.weight"] = weights["denoising.label_embed.weight"].clone()
    whole["denoising.label_embed.weight"][-1] = 0
    for name in [] if biases else list(weights):
        if name.startswith("pyramid.projections.") and name.endswith(".0.bias"):
            whole[name] = torch.zeros_like(weights[name])
    return whole


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_what_the_authors_code_writes_is_read(small_dino, tmp_path, heads):
    config = replace(small_dino, heads=heads)
    weights = weights_of(config)
    path = tmp_path / "checkpoint0011_4scale.pth"
    torch.save(training_run(to_authors_keys(weights, config), config), path)
    checkpoint = read(path)
    assert checkpoint.model == config
    assert same(checkpoint.weights, weights)
    assert (checkpoint.classes, checkpoint.category_ids) == (COCO_CLASSES, tuple(range(91)))
    assert (checkpoint.preprocessing, checkpoint.licence) == (Preprocessing(), "Apache-2.0")
    assert checkpoint.provenance["epochs"] == "12"


def test_weights_alone_are_read_with_a_word_on_what_is_assumed(small_dino, tmp_path, caplog):
    config = small_dino
    weights = weights_of(config)
    theirs = to_authors_keys(weights, config)
    for number, document in enumerate(
        (theirs, {"model": theirs}, {f"module.{name}": one for name, one in theirs.items()})
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(document, path)
        checkpoint = read(path)
        assert checkpoint.model == config
        assert same(checkpoint.weights, weights)
        assert "assumed" in checkpoint.provenance
    assert "taken as in the published ones: num_heads=8, dilation=False, position_temperature=20.0" in caplog.text


def test_settings_objects_are_read_as_tables(small_dino, tmp_path, monkeypatch):
    """As SLConfig of the authors' code pickles: a class that is not installed here."""
    modules = {"util": types.ModuleType("util"), "util.slconfig": types.ModuleType("util.slconfig")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    kind = type("SLConfig", (), {"__module__": "util.slconfig"})
    modules["util.slconfig"].SLConfig = kind
    config = replace(small_dino, num_heads=4, denoising_queries=33)
    run = training_run(to_authors_keys(weights_of(config), config), config)
    args, run["args"] = vars(run["args"]), kind()
    run["args"]._cfg_dict = args
    torch.save(run, tmp_path / "x.pth")
    monkeypatch.undo()
    assert read(tmp_path / "x.pth").model == config


def test_averaged_weights_come_first(small_dino, tmp_path):
    weights = weights_of(small_dino)
    averaged = {name: tensor * 2 for name, tensor in weights.items()}
    run = training_run(
        to_authors_keys(weights, small_dino), small_dino, ema_model=to_authors_keys(averaged, small_dino)
    )
    torch.save(run, tmp_path / "x.pth")
    checkpoint = read(tmp_path / "x.pth")
    assert same(checkpoint.weights, averaged)
    assert checkpoint.provenance["averaged"] == "the entry 'ema_model'"
    del run["model"]
    torch.save(run, tmp_path / "y.pth")
    assert same(read(tmp_path / "y.pth").weights, averaged)


@pytest.mark.parametrize("num_levels", [4, 5])
def test_files_of_detrex_with_arrays_are_read(small_dino, tmp_path, num_levels):
    config = replace(small_dino, heads="separate", num_classes=80, num_levels=num_levels)
    weights = weights_of(config)
    theirs = of_others(weights, config, "detrex")
    theirs |= {f"transformer.decoder.{name}": one for name, one in theirs.items() if name.startswith("class_embed.")}
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in theirs.items()}
    torch.save({"model": arrays, "iteration": 89_999}, tmp_path / "dino_r50_4scale_12ep.pth")
    checkpoint = read(tmp_path / "dino_r50_4scale_12ep.pth")
    assert checkpoint.model == replace(config, position_temperature=10_000.0, position_offset=-0.5)
    assert same(checkpoint.weights, expected(weights))
    assert (len(checkpoint.classes), checkpoint.classes[:2]) == (80, ("person", "bicycle"))
    assert checkpoint.provenance["assumed"] == (
        "num_heads=8, dilation=False, position_temperature=10000.0, position_offset=-0.5"
    )
    assert checkpoint.category_ids[10:13] == (11, 13, 14)
    assert (checkpoint.classes[-1], checkpoint.category_ids[-1]) == ("toothbrush", 90)


@pytest.mark.parametrize("meta", [None, {"cfg": CFG}])
def test_files_of_openmmlab_are_read(small_dino, tmp_path, meta):
    config = replace(small_dino, heads="separate", num_classes=80)
    weights = weights_of(config)
    theirs = of_others(weights, config, "openmmlab")
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("conv.bias")}
    theirs["backbone.bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save({"meta": meta, "state_dict": theirs}, tmp_path / "dino-4scale.pth")
    checkpoint = read(tmp_path / "dino-4scale.pth")
    position = {"position_temperature": 10_000.0, "position_offset": -0.5} if meta else {}
    assert checkpoint.model == replace(config, head_eps=1e-5, **position)
    assert same(checkpoint.weights, expected(weights, biases=False))
    default = "" if meta else ", position_temperature=20.0, position_offset=0.0"
    assert checkpoint.provenance["assumed"] == f"num_heads=8, dilation=False{default}"


def test_there_and_back_every_bit_is_the_same(small_dino, tmp_path):
    theirs = to_authors_keys(weights_of(small_dino), small_dino)
    torch.save(training_run(theirs, small_dino), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to="ours")
    done = convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to="official")
    assert done.lost == ()
    written = torch.load(tmp_path / "c.pth", weights_only=True)
    assert same(written["model"], theirs)
    assert written["args"]["dec_pred_class_embed_share"] is True
    assert read(tmp_path / "c.pth").model == small_dino


def test_a_loaded_file_predicts(small_dino, tmp_path):
    config = small_dino
    torch.manual_seed(0)
    weights = MODELS.build(config, load_backbone_weights=False).state_dict()
    torch.save({"model": to_authors_keys(weights, config)}, tmp_path / "official.pth")
    model = deformable_detr.load(tmp_path / "official.pth").model
    with torch.no_grad():
        final = model(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)).final
    assert (final.logits.shape, final.boxes.shape) == ((1, 11, 91), (1, 11, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.decoder.norm.bias": None}, r"1 missing: transformer\.decoder\.norm\.bias"),
        (
            {"transformer.level_embed": torch.ones(3, 64)},
            "128 attention weights cannot be those of 8 heads and 3 levels",
        ),
        ({"label_enc.weight": torch.ones(95, 64)}, r"label_enc\.weight is \[95, 64\] there and \[92, 64\] here"),
        ({"some.thing.else": torch.ones(2)}, r"1 names are not of a DINO of its authors: some\.thing\.else"),
        ({"backbone.0.layers.0.attn.relative_position_bias_table": torch.ones(2)}, "backbone is a Swin transformer"),
        ({"transformer.enc_output.bias": torch.full((64,), torch.nan)}, "the weights are not finite"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(small_dino, tmp_path, change, message):
    theirs = to_authors_keys(weights_of(small_dino), small_dino) | change
    theirs = {name: tensor for name, tensor in theirs.items() if tensor is not None}
    torch.save({"model": theirs}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        read(tmp_path / "x.pth")
    assert "x.pth" in str(error.value)


def test_class_heads_that_were_removed(small_dino, tmp_path):
    theirs = to_authors_keys(weights_of(small_dino), small_dino)
    theirs = {name: tensor for name, tensor in theirs.items() if "class_embed" not in name}
    torch.save({"model": theirs}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: its class heads \(class_embed\.\*\) have been removed"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("args", [{"num_queries": torch.tensor([1, 2])}, {"dec_pred_class_embed_share": torch.ones(2)}])
def test_odd_arguments_are_refused(small_dino, tmp_path, args):
    document = {"model": to_authors_keys(weights_of(small_dino), small_dino)}
    document["args"] = to_authors_args(small_dino) | args
    with pytest.raises(CheckpointError, match=r"x\.pth: its .* is a value of type Tensor; it must be"):
        dino_from_document(tmp_path / "x.pth", document)


@pytest.mark.parametrize("document", [None, [], {}, {"model": 3}, {"model": {1: 2}}, {"ema_model": {}}])
def test_other_documents_are_none(document):
    assert published_model(parameter_names(document)) is None


def test_a_document_without_a_dino_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no weights of a DINO"):
        dino_from_document(tmp_path / "x.pth", {"model": {"a": torch.ones(1)}})


def test_a_model_that_the_authors_do_not_have_is_not_written(small_dino, tmp_path):
    config = replace(small_dino, position_offset=-0.5)
    checkpoint = Checkpoint(
        weights=weights_of(config),
        model=config,
        classes=COCO_CLASSES,
        category_ids=tuple(range(91)),
        preprocessing=Preprocessing(),
    )
    with pytest.raises(CheckpointError, match=r"no position_offset=-0\.5.*write a \.safetensors file"):
        write_dino(checkpoint, tmp_path / "x.pth")
