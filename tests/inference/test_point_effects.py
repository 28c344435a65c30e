import pytest
import torch

from deformable_detr.inference.point_effects import (
    effects_by_reruns,
    last_layer_effects,
)
from deformable_detr.ops import multi_scale_deformable_attention
from tests.recorded import DEFORMABLE, images_of, recorded

QUERIES, CLASSES = torch.tensor([6, 1, 3]), torch.tensor([4, 0, 2])


def logit_without(network, layer, query, class_id, point):
    """Logit of the whole network, run again from the image on, with one point's weight at zero."""
    images, mask = images_of(padded=False)
    module = network.decoder.layers[layer].cross_attention

    def without_it(module, args, output):
        given, reference, tokens, padding_mask, shapes = args
        locations, weights = module.sampling_points(given, reference, shapes)
        weights[0, query].view(-1)[point] = 0
        value = module.value_proj(tokens).masked_fill(padding_mask[..., None], 0.0)
        by_head = value.unflatten(-1, (module.num_heads, -1))
        sums = multi_scale_deformable_attention(by_head, shapes, locations, weights, backend="reference")
        return module.output_proj(sums.flatten(2))

    handle = module.register_forward_hook(without_it)
    try:
        with torch.no_grad():
            return float(network(images[:1], mask[:1]).final.logits[0, query, class_id])
    finally:
        handle.remove()


@pytest.mark.parametrize("name", DEFORMABLE)
def test_effects_of_the_last_layer_are_those_of_the_whole_network(name):
    network, output, record = recorded(name)
    effects = last_layer_effects(network.decoder, record, QUERIES, CLASSES)
    assert effects.shape == (3, 2, 3, 3)
    assert float(effects.abs().max()) > 1e-3
    for index, (query, class_id) in enumerate(zip(QUERIES.tolist(), CLASSES.tolist(), strict=True)):
        whole = float(output.final.logits[0, query, class_id])
        for point in (0, 7, 17):
            rerun = whole - logit_without(network, 2, query, class_id, point)
            assert float(effects[index].flatten()[point]) == pytest.approx(rerun, abs=1e-5)


@pytest.mark.parametrize("name", DEFORMABLE)
def test_reruns_are_those_of_the_whole_network_for_every_layer(name):
    network, output, record = recorded(name)
    for layer in range(3):
        effects = effects_by_reruns(network.decoder, record, layer, 6, 4)
        assert effects.shape == (2, 3, 3)
        for point in (2, 11):
            whole = float(output.final.logits[0, 6, 4])
            rerun = whole - logit_without(network, layer, 6, 4, point)
            assert float(effects.flatten()[point]) == pytest.approx(rerun, abs=1e-5)
    torch.testing.assert_close(
        effects, last_layer_effects(network.decoder, record, QUERIES, CLASSES)[0], atol=1e-5, rtol=0
    )


def test_no_detections():
    network, _, record = recorded("two_stage")
    nothing = torch.zeros(0, dtype=torch.long)
    assert last_layer_effects(network.decoder, record, nothing, nothing).shape == (0, 2, 3, 3)


def test_other_heads_and_layers_give_other_effects():
    """Effects and points belong to the weights that were learnt: random ones in the class head change them."""
    network, _, record = recorded("two_stage")
    before = last_layer_effects(network.decoder, record, QUERIES, CLASSES)
    torch.nn.init.normal_(network.decoder.class_heads[-1].weight)
    after = last_layer_effects(network.decoder, record, QUERIES, CLASSES)
    assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.9
    points = record.decoder[-1].sampling_points(QUERIES)
    torch.nn.init.normal_(network.decoder.layers[-1].cross_attention.sampling_offsets.weight)
    assert not torch.allclose(record.decoder[-1].sampling_points(QUERIES).locations, points.locations, atol=0.01)
