from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import build
from deformable_detr.training.activation_checkpointing import checkpoint_activations
from deformable_detr.training.compiling import compile_layers


def test_without_a_compiler(tiny_config, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    model = build(tiny_config.model, load_backbone_weights=False)
    with pytest.raises(ConfigError, match=r"compile is true.*no c\+\+ or g\+\+"):
        compile_layers(model)
    monkeypatch.setenv("CXX", "mycc")
    with pytest.raises(ConfigError, match="there is no mycc"):
        compile_layers(model)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it, where warnings are no errors
def test_compiled_layers_learn_the_same_also_when_computed_twice(tiny_config):
    plain = build(replace(tiny_config.model, variant="refine", dropout=0.0), load_backbone_weights=False).train()
    model = deepcopy(plain)
    checkpoint_activations(model)
    compile_layers(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    for height, width in ((66, 97), (80, 71), (64, 110)):
        images = torch.randn(2, 3, height, width, generator=generator)
        padding_mask = torch.zeros(2, height, width, dtype=torch.bool)
        padding_mask[1, 50:] = True
        for one in (plain, model):
            one.zero_grad()
            output = one(images, padding_mask)
            sum(layer.boxes.sum() + layer.logits.square().mean() for layer in output.layers).backward()
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                assert (ours.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-6, name
