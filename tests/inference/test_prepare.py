import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from deformable_detr.inference.onednn import EVERYTHING, NOTHING
from deformable_detr.inference.prepare import PreparedDeformableDETR, prepare
from deformable_detr.models import MODELS, DINOConfig, build
from tests.dense import Dense, DenseConfig
from tests.family import FAMILY


def network(tiny_config, **settings):
    torch.manual_seed(4)
    model = build(replace(tiny_config.model, num_classes=3, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("sampling_offsets", "attention_weights", "head")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def final(model, images, padding=0):
    mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    if padding:
        mask[-1, :, -padding:] = True
    with torch.no_grad():
        return model(images, mask).final


@pytest.mark.parametrize("choice", [NOTHING, EVERYTHING], ids=["plain", "packed"])
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "base"},
        {"variant": "refine", "num_levels": 4},
        {"variant": "two_stage", "proposals": "distinct", "features": "per_image"},
        {"variant": "two_stage", "proposals": "paper", "num_levels": 3},
        {"variant": "two_stage", "proposals": "valid", "encoder_layers": 0},
    ],
)
def test_the_same_predictions(tiny_config, settings, choice):
    model = network(tiny_config, **settings)
    prepared = prepare(model, choice=choice)
    assert isinstance(prepared, PreparedDeformableDETR)
    for size in ((64, 96), (97, 65), (64, 96)):
        images = torch.randn(2, 3, *size)
        expected, found = final(model, images), final(prepared, images)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)
    one = final(prepared, images[:1])
    torch.testing.assert_close(one.logits, found.logits[:1], rtol=0, atol=1e-4)


def test_images_with_padding_go_through_the_network_itself(tiny_config):
    model = network(tiny_config)
    images = torch.randn(2, 3, 64, 96)
    expected = final(model, images, padding=17)
    found = final(prepare(model, choice=EVERYTHING), images, padding=17)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)


def test_the_network_stays_as_it_is(tiny_config):
    model = network(tiny_config)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model)
    images = torch.randn(1, 3, 64, 96)
    first = final(prepared, images)
    assert torch.equal(final(prepared, images).logits, first.logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_output_has_the_last_layer_only(tiny_config):
    output = prepare(network(tiny_config))(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    assert len(output.layers) == 1
    assert output.proposals is None
    assert not output.final.logits.requires_grad


def test_only_a_few_sizes_are_remembered(tiny_config):
    prepared = prepare(network(tiny_config))
    for width in range(64, 224, 32):
        final(prepared, torch.randn(1, 3, 64, width))
    assert len(prepared._constants) == 4


def test_bfloat16_keeps_boxes_in_float32(tiny_config):
    model = network(tiny_config, variant="refine")
    images = torch.randn(2, 3, 64, 96)
    expected, found = final(model, images), final(prepare(model, precision="bfloat16", choice=EVERYTHING), images)
    assert found.boxes.dtype == found.logits.dtype == torch.float32
    assert float((found.boxes - expected.boxes).abs().max()) < 0.05
    assert not torch.equal(found.boxes, expected.boxes)


def test_another_network_keeps_its_last_layer():
    model = Dense(DenseConfig(num_classes=3))
    images = torch.randn(2, 3, 64, 96)
    prepared = prepare(model)
    assert torch.equal(final(prepared, images).logits, final(model, images).logits)
    assert not model.training


class Gated(torch.nn.Module):
    """Feed-forward block of a researcher, with other layers than ours."""

    def __init__(self, dim):
        super().__init__()
        self.gate = torch.nn.Linear(dim, dim)

    def forward(self, tokens):
        return tokens * self.gate(tokens).sigmoid()


def test_a_network_with_a_part_of_somebody_else_computes_as_it_is(tiny_config):
    model = network(tiny_config)
    assert isinstance(prepare(model), PreparedDeformableDETR)
    model.encoder.layers[0].ffn = Gated(32)
    images = torch.randn(2, 3, 64, 96)
    prepared = prepare(model)
    assert not isinstance(prepared, PreparedDeformableDETR)
    assert torch.equal(final(prepared, images).logits, final(model, images).logits)


def test_hooks_of_a_user_are_called(tiny_config):
    model = network(tiny_config)
    called = []
    handle = model.decoder.layers[0].register_forward_hook(lambda *_: called.append(True))
    final(prepare(model), torch.randn(1, 3, 64, 96))
    assert called == [True]
    handle.remove()
    assert isinstance(prepare(model), PreparedDeformableDETR)


def test_a_method_of_one_object_is_a_part_of_somebody_else(tiny_config):
    model = network(tiny_config)
    decoder = model.decoder
    decoder.forward = lambda queries, memory: type(decoder).forward(decoder, queries, memory)
    assert not isinstance(prepare(model), PreparedDeformableDETR)


def test_what_is_not_prepared_heeds_the_precision(tiny_config):
    model = network(tiny_config, variant="refine")
    images = torch.randn(2, 3, 64, 96)
    rough = prepare(model, precision="bfloat16", choice=EVERYTHING)
    assert not torch.equal(final(rough, images, padding=17).logits, final(model, images, padding=17).logits)
    model.encoder.layers[0].ffn = Gated(32)
    found, exact = final(prepare(model, precision="bfloat16"), images), final(model, images)
    assert found.boxes.dtype == torch.float32
    assert not torch.equal(found.logits, exact.logits)
    torch.testing.assert_close(found.boxes, exact.boxes, rtol=0, atol=0.05)


def test_sizes_of_many_threads_at_once(tiny_config):
    prepared = prepare(network(tiny_config))
    shapes = [((4, width), (2, width // 2)) for width in range(6, 30, 2)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(prepared._constants_of, shapes * 40))
    assert [one.position.shape[1] for one in found] == [4 * a[1] + 2 * b[1] for a, b in shapes] * 40


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("padding", [0, 17])
def test_every_model_is_prepared_or_goes_as_it_is(name, padding):
    torch.manual_seed(4)
    model = MODELS.build(replace(FAMILY[name], num_classes=3)).eval()
    images = torch.randn(2, 3, 64, 97)
    expected = final(model, images, padding)
    prepared = prepare(model, choice=EVERYTHING)
    found = final(prepared, images, padding)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert len(prepared(images, torch.zeros(2, 64, 97, dtype=torch.bool)).layers) == 1


def test_dino_goes_through_the_network_itself(tiny_config):
    """Its decoder is another, so that nothing of it is prepared; only the last layer is given out."""
    common = {
        name: getattr(tiny_config.model, name)
        for name in DINOConfig.__dataclass_fields__
        if hasattr(tiny_config.model, name)
    }
    torch.manual_seed(4)
    model = MODELS.build(DINOConfig(**common | {"num_classes": 3, "denoising_queries": 5})).eval()
    prepared = prepare(model)
    assert not isinstance(prepared, PreparedDeformableDETR)
    images = torch.randn(2, 3, 64, 96)
    for padding in (0, 17):
        expected, found = final(model, images, padding), final(prepared, images, padding)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.boxes, expected.boxes)
    output = prepared(images, torch.zeros(2, 64, 96, dtype=torch.bool))
    assert (len(output.layers), output.proposals, output.denoising) == (1, None, None)


def test_a_network_with_denoising_is_prepared(tiny_config):
    model = network(tiny_config, variant="two_stage", denoising_queries=5)
    prepared = prepare(model)
    assert isinstance(prepared, PreparedDeformableDETR)
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(final(prepared, images).logits, final(model, images).logits, rtol=0, atol=1e-4)
