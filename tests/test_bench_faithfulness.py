"""The benchmarks of explanations, on networks of seconds."""

import pytest
import torch

from benchmarks.accuracy import faithfulness, habit
from benchmarks.accuracy.faithfulness import (
    BASELINE,
    FRACTIONS,
    Hit,
    Scores,
    area,
    first_order_effects,
    gaussian_in,
    hits_of,
    in_order,
    judge,
    maps_of,
    measure,
    smoothed,
    summary,
)
from deformable_detr.core.boxes import xyxy_to_cxcywh
from deformable_detr.core.types import DetectorOutput, Predictions
from deformable_detr.data.open import open_dataset
from deformable_detr.inference.point_effects import last_layer_logits, with_each_left_out
from tests.recorded import images_of, recorded

BOX = torch.tensor([8.0, 16.0, 24.0, 40.0])


def test_blocks_come_by_falling_value():
    values = torch.zeros(20, 24)
    values[8:16, 16:] = 5
    values[16:, :8] = 3  # a block of 4 x 8 pixels at the border
    ranks = in_order(values)
    assert ranks.shape == (20, 24)
    assert torch.equal(ranks[8:16, 16:], torch.zeros(8, 8))
    assert torch.equal(ranks[16:, :8], torch.full((4, 8), 1 / 9))
    assert float(ranks.max()) == pytest.approx(8 / 9)


def test_area_and_smoothing():
    assert area(torch.ones(len(FRACTIONS))) == pytest.approx(1.0)
    assert area(torch.tensor(FRACTIONS)) == pytest.approx(0.5)
    point = torch.zeros(1, 41, 51)
    point[0, 20, 25] = 1
    blurred = smoothed(point, 3.0)
    assert float(blurred.sum()) == pytest.approx(1.0, rel=1e-3)
    assert int(blurred.argmax()) == 20 * 51 + 25
    centre = gaussian_in(BOX, 48, 64)
    assert divmod(int(centre.argmax()), 64) in {(27, 15), (27, 16), (28, 15), (28, 16)}


def brightness(images):
    """One query on the box whose score is the share of bright pixels in it."""
    left, top, right, bottom = BOX.int().tolist()
    share = (images[:, 0, top:bottom, left:right] > 0.5).float().mean((1, 2)).clamp(1e-4, 1 - 1e-4)
    boxes = xyxy_to_cxcywh(BOX / torch.tensor([64, 48, 64, 48])).expand(len(images), 1, 4)
    return DetectorOutput([Predictions(share.logit().view(-1, 1, 1), boxes)], None)


def test_a_map_of_what_matters_is_better_than_its_reverse():
    pixels = torch.zeros(1, 3, 48, 64)
    pixels[:, :, 16:40, 8:24] = 1
    hit = Hit(0, 0, BOX, BOX)
    good = judge(brightness, pixels, torch.zeros_like(pixels), pixels[0, 0], hit)
    bad = judge(brightness, pixels, torch.zeros_like(pixels), 1 - pixels[0, 0], hit)
    assert good.deletion < 0.15 < 0.8 < bad.deletion
    assert bad.insertion < 0.25 < 0.85 < good.insertion
    assert (good.pointing, bad.pointing) == (1.0, 0.0)
    assert (good.energy, bad.energy) == (pytest.approx(1.0), pytest.approx(0.0))


def test_differences_are_paired():
    scores = {BASELINE: [Scores(0.1, 0.9, 1, 1), Scores(0.3, 0.7, 1, 1)]}
    scores["other"] = [Scores(0.0, 0.8, 1, 0.5), Scores(0.2, 0.6, 0, 0.5)]
    found = summary(scores)
    assert found["other"]["deletion"] == pytest.approx(0.1)
    assert found["other"]["pointing"] == 0.5
    assert found["other"]["against_box"]["deletion"] == {
        "difference": pytest.approx(-0.1), "standard_error": pytest.approx(0.0, abs=1e-9),
    }  # fmt: skip


def test_only_hits_of_the_right_class_count():
    boxes = xyxy_to_cxcywh(torch.stack([BOX, BOX + 1, BOX + 20]) / torch.tensor([64, 48, 64, 48]))
    logits = torch.tensor([[3.0, -3.0], [-3.0, 2.0], [5.0, -3.0]])
    output = DetectorOutput([Predictions(logits[None], boxes[None])], None)
    (hit,) = hits_of(output, BOX[None], torch.tensor([0]), (64, 48))
    assert (hit.query, hit.class_id) == (0, 0)
    assert hits_of(output, BOX[None], torch.tensor([2]), (64, 48)) == []


@pytest.mark.parametrize("name", ["two_stage", "dino", "detr"])
def test_every_kind_of_map(name):
    network, _, record = recorded(name)
    hits = [Hit(query, query % 5, BOX, BOX) for query in (3, 7)]
    maps = maps_of(network, record, images_of(padded=False)[0][:1], hits)
    assert len(maps) == (6 if name == "detr" else 8)
    for one in maps.values():
        assert one.shape == (2, 96, 128)
        assert float(one.min()) >= -1e-9
        assert float(one.sum()) > 0


@pytest.mark.parametrize("name", ["base", "refine"])  # the others embed boxes in float32
def test_first_order_effects_are_finite_differences(name):
    network, _, record = recorded(name, torch.float64)
    queries, classes = torch.tensor([6, 1, 3]), torch.tensor([4, 0, 2])
    tangents = first_order_effects(network.decoder, record, queries, classes)
    weights = record.decoder[-1].sampling_points(queries).weights[0]
    step = 1e-3
    scaled = weights[:, None] + step * (with_each_left_out(weights)[:, 1:] - weights[:, None])
    back = weights[:, None] - step * (with_each_left_out(weights)[:, 1:] - weights[:, None])
    with torch.no_grad():
        down = last_layer_logits(network.decoder, record, queries, classes, scaled)
        up = last_layer_logits(network.decoder, record, queries, classes, back)
    torch.testing.assert_close((up - down).div(2 * step).view_as(tangents), tangents, atol=1e-4, rtol=1e-4)
    assert float(tangents.abs().max()) > 1e-3


def test_measured_over_a_data_set(detector, scenes, monkeypatch):
    dataset = open_dataset(scenes, split="val")
    monkeypatch.setattr(faithfulness, "hits_of", lambda *_: [])
    assert measure(detector, dataset, 4) == {}
    monkeypatch.setattr(faithfulness, "hits_of", lambda *_: [Hit(2, 1, BOX, BOX), Hit(5, 0, BOX, BOX)])
    scores = measure(detector, dataset, 4)
    assert len(scores) == 8
    assert {len(rows) for rows in scores.values()} == {4}
    lines = faithfulness.table(summary(scores))
    assert len(lines) == 8
    assert {len(line) for line in lines} == {len(faithfulness._HEAD)}


def test_habits(detector, scenes):
    for layer in detector.model.decoder.layers:
        torch.nn.init.normal_(layer.cross_attention.sampling_offsets.weight)
        torch.nn.init.normal_(layer.cross_attention.attention_weights.weight)
    found = habit.variation(detector, open_dataset(scenes, split="val"), 2)
    assert len(found) == 2
    assert all(1e-4 < one["offsets"] < 1 and one["weights"] > 1e-3 for one in found), found
    for layer in detector.model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attention.sampling_offsets.weight)
    always = habit.variation(detector, open_dataset(scenes, split="val"), 2)
    assert all(one["offsets"] == pytest.approx(0, abs=1e-6) for one in always)
