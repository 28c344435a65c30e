import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.types import DetectorOutput, Predictions
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.explain import explain
from tests.recorded import ALL, network_of

PLAIN = Preprocessing(short_side=96, max_side=160)


def picture(width=200, height=120):
    """Noise that is the same in every test; height is not width."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def detector_of(name, preprocessing=PLAIN):
    return Detector(network_of(name), tuple("abcde"), (1, 2, 3, 4, 5), preprocessing, device="cpu")


@pytest.mark.parametrize("name", ALL)
def test_every_model_explains_what_it_predicts(name):
    detector = detector_of(name)
    predicted = detector.predict(picture(), threshold=0.0)[:3]
    found = explain(detector, picture(), threshold=0.0, most=3)
    assert found.detections.query_ids.tolist() == predicted.query_ids.tolist()
    torch.testing.assert_close(found.detections.scores, predicted.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.path_xyxy[-1], found.detections.boxes_xyxy)
    assert found.path_xyxy.shape == (3, 3, 4)
    assert (found.size_wh, found.input_size_wh, found.missed) == ((200, 120), (160, 96), None)
    assert len(found.layers) == (0 if name == "detr" else 3)
    assert len(found.dense_maps) == (3 if name == "detr" else 0)
    assert (found.reference_xyxy is None) == (name == "detr")
    assert len(found.proposals) == (3 if name in ("two_stage", "dino") else 0)
    assert [row.shape for row in found.attended_queries] == [(3, 11)] * 3
    heat = found.heat(1)
    assert heat.shape == (120, 200)
    assert float(heat.sum()) == pytest.approx(float(found.chained.mass[1].sum()), rel=1e-4)
    record = json.loads(json.dumps(found.record()))
    assert [one["query"] for one in record["detections"]] == predicted.query_ids.tolist()
    for layer in found.layers:
        torch.testing.assert_close(layer.level_shares().sum(1), torch.ones(3))
        assert (layer.effects is None) == (layer.layer < 3)
    if name == "base":  # the reference never moves, and is a point
        assert torch.equal(found.reference_xyxy[:, :2], found.reference_xyxy[:, 2:])


def test_proposals_are_where_the_reference_boxes_are():
    found = explain(detector_of("two_stage"), picture(), threshold=0.0, most=5)
    for proposal, box in zip(found.proposals, found.reference_xyxy.tolist(), strict=True):
        height, width = found.spatial_shapes[proposal.level]
        assert 0 <= proposal.row < height
        assert 0 <= proposal.column < width
        assert len(box) == 4


@pytest.mark.parametrize(("width", "height"), [(200, 120), (90, 180)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_points_are_pixels_of_the_picture_as_it_is_shown(tmp_path, width, height, orientation):
    """A network of known offsets: a point one cell to the right is one cell's width of the shown picture away."""
    detector = detector_of("base")
    for layer in detector.model.decoder.layers:
        cross = layer.cross_attention
        nn.init.zeros_(cross.sampling_offsets.weight)
        bias = torch.zeros(2, 3, 3, 2)
        bias[0, :, :, 0], bias[1, :, :, 1] = 1.0, -2.0
        cross.sampling_offsets.bias = nn.Parameter(bias.flatten())
    image = picture(width, height)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    found = explain(detector, tmp_path / "turned.png", threshold=0.0, most=2)
    shown = (width, height) if orientation == 1 else (height, width)
    assert found.size_wh == shown
    for layer in found.layers:
        for level, (rows, columns) in enumerate(found.spatial_shapes):
            moved = layer.locations_px[:, :, level] - found.reference_xyxy[:, None, None, :2]
            torch.testing.assert_close(moved[:, 0], torch.tensor([shown[0] / columns, 0.0]).expand(2, 3, 2))
            torch.testing.assert_close(moved[:, 1], torch.tensor([0.0, -2 * shown[1] / rows]).expand(2, 3, 2))
        assert layer.offset_variation == pytest.approx(0.0, abs=1e-6)


def test_a_place_with_and_without_a_detection():
    detector = detector_of("two_stage")
    found = explain(detector, picture(), threshold=0.0)
    left, top, right, bottom = found.detections[0].box_xyxy
    place = (min(max((left + right) / 2, 0), 200), min(max((top + bottom) / 2, 0), 120))
    there = explain(detector, picture(), threshold=0.0, at=place)
    assert len(there.detections) == 1
    assert there.missed is None
    nothing = explain(detector, picture(), threshold=0.999, at=place)
    assert len(nothing.detections) == 1
    assert "below the threshold" in nothing.missed.reason()
    assert nothing.record()["missed"]["reason"] == nothing.missed.reason()


def test_effects_of_all_layers_and_gradients():
    found = explain(detector_of("refine"), picture(), threshold=0.0, most=2, effects="all", gradients="direct")
    assert [layer.effects.shape for layer in found.layers] == [(2, 2, 3, 3)] * 3
    assert found.gradients.shape == (2, 5, 96, 160)
    none = explain(detector_of("refine"), picture(), threshold=0.0, most=2, effects="none")
    assert [layer.effects for layer in none.layers] == [None] * 3


def test_nothing_found():
    found = explain(detector_of("two_stage"), picture(), threshold=1.0, gradients="total", effects="all")
    assert len(found.detections) == 0
    assert found.record()["detections"] == []


class NoAttention(nn.Module):
    num_classes = 5

    def forward(self, images, padding_mask, targets=None):
        return DetectorOutput([Predictions(torch.zeros(1, 2, 5), torch.rand(1, 2, 4))], None)


class Renamed(nn.Module):
    """Network whose decoder is found under another name."""

    num_classes = 5

    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, images, padding_mask, targets=None):
        return self.inner(images, padding_mask)


def test_what_cannot_be_explained():
    detector = detector_of("base")
    with pytest.raises(ConfigError, match="21 detections are to be explained; it must be 1 to 20"):
        explain(detector, picture(), most=21)
    with pytest.raises(ConfigError, match=r"the place 200\.5,3 is outside the image, which has 200 x 120 pixels"):
        explain(detector, picture(), at=(200.5, 3.0))
    with pytest.raises(ConfigError, match="a NoAttention cannot be explained"):
        explain(detector.around(NoAttention()), picture())
    renamed = Renamed(detector.model)
    with pytest.raises(ConfigError, match="a Renamed cannot be explained: its decoder layers are not in a decoder"):
        explain(detector.around(renamed), picture())


def test_predictions_that_are_no_numbers():
    detector = detector_of("refine")
    torch.nn.init.constant_(detector.model.decoder.class_heads[-1].bias, float("nan"))
    for at in (None, (10.0, 10.0)):
        with pytest.raises(CheckpointError, match="the predictions are no numbers"):
            explain(detector, picture(), at=at)


@pytest.mark.parametrize("name", ["base", "refine", "two_stage", "dino"])
def test_references_of_the_layers(name):
    found = explain(detector_of(name), picture(), threshold=0.0, most=2)
    torch.testing.assert_close(found.layers[0].reference_xyxy, found.reference_xyxy)
    for layer, box in zip(found.layers[1:], found.path_xyxy, strict=False):
        same = torch.allclose(layer.reference_xyxy, found.reference_xyxy if name == "base" else box, atol=0.01)
        assert same == (name != "dino")
