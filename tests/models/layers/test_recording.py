import pytest
import torch
from torch import nn

from deformable_detr.models.layers.dense_attention import DenseAttention
from deformable_detr.models.layers.recording import DenseCall, recording
from deformable_detr.ops import multi_scale_deformable_attention
from tests.recorded import ALL, DEFORMABLE, images_of, network_of, recorded


def hooks(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("name", ALL)
def test_predictions_stay_equal_to_the_last_bit(name):
    network, (images, mask) = network_of(name), images_of()
    with torch.no_grad():
        plain = network(images, mask)
        with recording(network) as record:
            seen = network(images, mask)
    for one, two in zip(plain.layers, seen.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert hooks(network) == 0
    deformable = name != "detr"
    counts = [len(calls) for calls in (record.encoder, record.decoder, record.dense_encoder, record.dense_decoder)]
    assert counts == ([2, 3, 0, 0] if deformable else [0, 0, 2, 3])
    assert len(record.self_attention) == 3
    assert record.memory.tokens.shape[0] == 2
    assert (record.queries is None) != deformable


def test_nothing_is_left_behind_after_an_error():
    network, (images, mask) = network_of("two_stage"), images_of()
    network.decoder.class_heads = None
    with pytest.raises(TypeError, match="subscriptable"), recording(network):
        network(images, mask)
    assert hooks(network) == 0


def test_recordings_may_lie_within_each_other():
    network, (images, mask) = network_of("refine"), images_of()
    with torch.no_grad(), recording(network) as outer:
        with recording(network) as inner:
            network(images, mask)
        assert hooks(network) > 0
        assert len(inner.decoder) == len(outer.decoder) == 3
        assert torch.equal(inner.decoder[1].query, outer.decoder[1].query)


def touched(points, spatial_shapes):
    """Positions whose features some sampling point reads: the four cells around it."""
    found, start = set(), 0
    for level, (height, width) in enumerate(spatial_shapes):
        places = points[..., level, :, :].reshape(-1, 2).double()
        for x, y in (places * torch.tensor([width, height]) - 0.5).floor().long().tolist():
            for column, row in ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)):
                if 0 <= column < width and 0 <= row < height:
                    found.add(start + row * width + column)
        start += height * width
    return sorted(found)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", DEFORMABLE)
def test_what_no_point_touches_is_not_read(name, padded):
    """Noise a hundred times as strong as the features, wherever no point looks, changes not a bit of the output."""
    network, (images, mask) = network_of(name), images_of(padded=padded)
    with torch.no_grad(), recording(network) as record:
        network(images, mask)
    for call in record.decoder:
        for image, query in ((0, 0), (0, 7), (1, 4)):
            points = call.sampling_points(torch.tensor([query]))
            near = touched(points.locations[image], call.spatial_shapes)
            noise = 100 * call.tokens.std() * torch.randn(call.tokens.shape)
            far = torch.ones(call.tokens.shape[1], dtype=torch.bool)
            far[near] = False
            assert far.any()

            def attended(tokens, call=call):
                with torch.no_grad():
                    return call.module(call.query, call.reference, tokens, call.padding_mask, call.spatial_shapes)

            shaken = attended(torch.where(far[:, None], call.tokens + noise, call.tokens))
            assert torch.equal(shaken[image, query], call.output[image, query])
            if set(near) - set(call.padding_mask[image].nonzero().squeeze(1).tolist()):
                within = attended(torch.where(far[:, None], call.tokens, call.tokens + noise))
                assert not torch.equal(within[image, query], call.output[image, query])


@pytest.mark.parametrize("name", DEFORMABLE)
def test_points_and_weights_give_the_output_again(name):
    network, (images, mask) = network_of(name), images_of()
    with torch.no_grad(), recording(network) as record:
        network(images, mask)
    for call in (*record.encoder, *record.decoder):
        points = call.sampling_points()
        torch.testing.assert_close(points.weights.flatten(3).sum(-1), torch.ones(points.weights.shape[:3]))
        with torch.no_grad():
            value = call.module.value_proj(call.tokens).masked_fill(call.padding_mask[..., None], 0.0)
            by_head = value.unflatten(-1, (call.module.num_heads, -1))
            sums = multi_scale_deformable_attention(by_head, call.spatial_shapes, points.locations, points.weights)
            again = call.module.output_proj(sums.flatten(2))
        assert float((again - call.output).abs().max()) <= 1e-5 * float(call.output.abs().max())


def test_points_of_some_queries():
    _, _, record = recorded("two_stage")
    call, some = record.decoder[0], torch.tensor([7, 2])
    for few, every in zip(call.sampling_points(some), call.sampling_points(), strict=True):
        torch.testing.assert_close(few, every[:, some])


@pytest.mark.parametrize("mask", [None, torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.7])
def test_self_attention_has_the_weights_of_pytorch(mask):
    module = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    nn.init.normal_(module.in_proj_bias)
    query, content = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    if mask is not None:
        mask = mask & ~torch.eye(6, dtype=torch.bool)
    _, expected = module(query, query, content, need_weights=True, attn_mask=mask, average_attn_weights=False)
    call = DenseCall(module, query, query, mask)
    torch.testing.assert_close(call.weights(), expected)
    torch.testing.assert_close(call.weights(torch.tensor([4, 1])), expected[:, :, [4, 1]])


def test_dense_attention_is_its_weights_times_the_values():
    module = DenseAttention(12, num_heads=3, dropout=0.0).eval()
    nn.init.normal_(module.in_proj_bias)
    query, key, value = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    weights = DenseCall(module, query, key, padding[:, None, None]).weights()
    values = nn.functional.linear(value, module.in_proj_weight[24:], module.in_proj_bias[24:])
    sums = weights @ values.unflatten(-1, (3, -1)).transpose(1, 2)
    expected = module(query, key, value, padding)
    torch.testing.assert_close(module.out_proj(sums.transpose(1, 2).flatten(2)), expected)
    assert not weights[1, :, :, 4:].any()


def test_positions_name_the_proposals():
    for name in ("two_stage", "dino"):
        _, output, record = recorded(name)
        positions = record.queries.positions[0]
        assert positions.shape == (11,)
        if name == "two_stage":
            torch.testing.assert_close(output.proposals.boxes[0, positions], record.queries.reference[0])
        assert positions.unique().numel() == 11
