from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from deformable_detr.models import build
from deformable_detr.training.activation_checkpointing import checkpoint_activations, checkpointed_parts
from deformable_detr.training.freezing import freeze


@pytest.fixture
def batch():
    """Two images, height is not width, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    padding_mask = torch.zeros(2, 66, 97, dtype=torch.bool)
    padding_mask[1, 50:] = padding_mask[1, :, 70:] = True
    return torch.randn(2, 3, 66, 97, generator=generator) * ~padding_mask[:, None], padding_mask


def gradients(model, batch):
    torch.manual_seed(3)
    output = model.train()(*batch)
    sum((one.boxes.sum() + one.logits.square().mean()) for one in output.layers).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_same_gradients_to_the_last_bit(tiny_config, batch, variant, frozen):
    config = replace(tiny_config.model, dropout=0.2, variant=variant, frozen_batch_norm=False)
    plain = build(config, load_backbone_weights=False)
    if frozen:
        plain = build(replace(config, frozen_batch_norm=True, backbone_weights="here"), load_backbone_weights=False)
    model = deepcopy(plain)
    checkpoint_activations(model)
    assert checkpointed_parts(model) == ["backbone"] * frozen + ["encoder", "decoder"]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for ours, theirs in zip(gradients(model, batch), gradients(plain, batch), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_less_is_remembered(tiny_config, batch):
    model = build(replace(tiny_config.model, encoder_layers=3, ffn_dim=512), load_backbone_weights=False)
    freeze(model, ("backbone",))
    remembered = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations(model)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.train()(*batch)
        remembered.append(sum(tensor.numel() for tensor in kept.values()))
        del output
    assert remembered[1] < 0.5 * remembered[0]


def test_copies_are_their_own(tiny_config):
    model = build(tiny_config.model, load_backbone_weights=False)
    assert checkpointed_parts(model) == []
    checkpoint_activations(model)
    copy = deepcopy(model)
    assert copy.encoder.layers[0].forward.args[0].__self__ is copy.encoder.layers[0]
