import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.huggingface.names import DetectorNames, file_key, our_weights, their_weights
from deformable_detr.weights.key_map import KeyMap

NAMES = DetectorNames(
    "a detector",
    "body.",
    KeyMap((("layers.#.attention", "model.decoder.layers.#.self_attn"),)),
    to_theirs=lambda name: f"model.{name}" if name.startswith("head.") else None,
    to_ours=lambda name: name.removeprefix("model.") if name.startswith("model.head.") else None,
)
OURS = {
    "layers.0.attention.in_proj_weight": torch.arange(12.0).view(6, 2),
    "layers.0.attention.in_proj_bias": torch.arange(6.0),
    "body.layer1.0.conv2.weight": torch.ones(1),
    "body.bn1.num_batches_tracked": torch.tensor(3),
    "head.weight": torch.full((3,), 2.0),
}


@pytest.mark.parametrize("backbone", ["timm", "native"])
def test_there_and_back(backbone):
    theirs = their_weights(OURS, NAMES, timm_name="resnet18", backbone=backbone)
    inner = "layer1.0.conv2" if backbone == "timm" else "encoder.stages.0.layers.0.layer.1.convolution"
    assert set(theirs) == {
        *(f"model.decoder.layers.0.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        f"model.backbone.model.{inner}.weight",
        "model.head.weight",
    }
    assert theirs["model.decoder.layers.0.self_attn.k_proj.bias"].tolist() == [2.0, 3.0]
    ours = our_weights(theirs, NAMES)
    assert set(ours) == set(OURS) - {"body.bn1.num_batches_tracked"}
    assert all(torch.equal(ours[name], OURS[name]) for name in ours)
    # In files, parameters have other names.
    assert our_weights({file_key(name): tensor for name, tensor in theirs.items()}, NAMES).keys() == ours.keys()


def test_names_in_files():
    assert file_key("model.backbone.model.bn1.bias") == "model.backbone.conv_encoder.model.bn1.bias"
    assert file_key("model.encoder.layers.3.self_attn.o_proj.bias") == "model.encoder.layers.3.self_attn.out_proj.bias"
    assert file_key("model.decoder.layers.3.mlp.fc1.bias") == "model.decoder.layers.3.fc1.bias"
    assert file_key("model.head.weight") == "model.head.weight"


def test_what_is_refused():
    theirs = their_weights(OURS, NAMES, timm_name="resnet18", backbone="timm")
    with pytest.raises(ValueError, match=r"backbone resnet18d has no native name for stem\.0\.weight"):
        their_weights({"body.stem.0.weight": torch.ones(1)}, NAMES, timm_name="resnet18d", backbone="native")
    with pytest.raises(CheckpointError, match="'tail' is not a parameter of a detector in transformers, nor"):
        our_weights({**theirs, "tail": torch.ones(1), "other": torch.ones(1)}, NAMES)
    without = {name: tensor for name, tensor in theirs.items() if not name.endswith("v_proj.bias")}
    with pytest.raises(CheckpointError, match="in_proj_bias needs the projections of q, k and v; v is not there"):
        our_weights(without, NAMES)
    twice = {**theirs, "model.backbone.conv_encoder.model.layer1.0.conv2.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="is there twice"):
        our_weights(twice, NAMES)
    uneven = {**theirs, "model.decoder.layers.0.self_attn.k_proj.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="of one shape"):
        our_weights(uneven, NAMES)
