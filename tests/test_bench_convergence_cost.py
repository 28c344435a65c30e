"""Multiply-adds are those that PyTorch counts, and grow as the papers say."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accuracy.convergence import cost

SHAPE = cost.Shape(dim=64, heads=2, encoder_layers=1, decoder_layers=2, ffn=80, queries=7)


def counted(call):
    """Multiply-adds of all matrix products; the samples of our operator are none."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


def test_formulas_agree_with_pytorch_s_count():
    dense, ours = cost.networks(SHAPE)
    dense.train()
    ours.train()  # in evaluation PyTorch takes a way through self-attention that it does not count
    shapes = cost.pyramid_shapes((50, 70))
    assert shapes == ((7, 9), (4, 5), (2, 3), (1, 2))
    memory = cost.memory_of(shapes, SHAPE.dim)
    tokens = cost.count(shapes)
    assert tokens == 91
    assert counted(lambda: dense.encoder(memory)) == cost.dense_encoder(SHAPE, tokens)
    assert counted(lambda: dense.decoder(dense.queries.weight, memory)) == cost.dense_decoder(SHAPE, tokens)
    sampled = 4 * tokens * cost.LEVELS * cost.POINTS * SHAPE.dim
    assert counted(lambda: ours.encoder(memory)) == cost.deformable_encoder(SHAPE, tokens) - sampled
    queries, _ = ours.query_source(memory)
    expected = cost.deformable_decoder(SHAPE, tokens) - cost.sampling(SHAPE)
    assert counted(lambda: ours.decoder(queries, memory)) == expected


def test_growth_is_that_of_the_papers():
    big = [10**6, 10**7]

    def growth(count):
        return count(cost.Shape(), big[1]) / count(cost.Shape(), big[0])

    assert growth(cost.dense_encoder) == pytest.approx(100, rel=0.01)
    assert growth(cost.deformable_encoder) == pytest.approx(10)
    assert growth(cost.dense_decoder) == pytest.approx(10, rel=0.01)
    assert cost.values(cost.Shape(), 2000) == 2 * cost.values(cost.Shape(), 1000)
    at_once = [cost.deformable_decoder(cost.Shape(), tokens) - cost.values(cost.Shape(), tokens) for tokens in big]
    assert at_once[0] == at_once[1]


def test_shapes_of_maps():
    assert cost.map_shape((128, 160), 32) == ((4, 5),)
    assert cost.map_shape((130, 160), 16) == ((9, 10),)
    counts = [cost.count(cost.pyramid_shapes(size)) for size in cost.SIZES_HW]
    assert len(counts) == 5
    assert 19_000 < counts[-1] < 21_000


def test_a_measurement_has_all_parts(capsys):
    cost.main(["--seconds", "0", "--sizes", "2", "--hidden-dim", "32"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {"Deformable DETR", "DETR", "DETR-DC5", "DETR, as many tokens"}
    parts = {f"{part}, {name}" for part in ("encoder", "decoder") for name in names}
    assert set(line["exponents"]) == parts | {"decoder, values alone", "decoder, samples alone"}
    assert len(line["costs"]) == 2 * 10
    by_part = {(one["part"], one["tokens"]): one for one in line["costs"]}
    assert ("encoder, DETR, as many tokens", 1700) in by_part
    assert all(one["seconds"] > 0 for one in line["costs"])
    assert line["exponents"]["encoder, DETR, as many tokens"]["multiply_adds"] > 1.5
    assert line["exponents"]["encoder, Deformable DETR"]["multiply_adds"] == pytest.approx(1)
    assert line["exponents"]["decoder, samples alone"]["multiply_adds"] == pytest.approx(0)
    assert torch.get_num_threads() == 1
