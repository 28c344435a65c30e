"""Views of an image and their merging: by hand, and with a detector whose answers move with the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deformable_detr.core.boxes import xyxy_to_cxcywh
from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Predictions
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.tta import TTA, Flip, flipped, flipped_back, merged, soft_nms, weighted_box_fusion

PLAIN = Preprocessing(short_side=64, max_side=128, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Bounds(nn.Module):
    """Two objects, where red and where green is bright: equivariant, apart from whole pixels.

    `sure` is the score of an object by the width of the image, so that views can differ.
    """

    num_classes = 2

    def __init__(self, sure=lambda width: 0.9):
        super().__init__()
        self.sure = sure
        self.seen = []

    def forward(self, images, padding_mask, targets=None):
        height, width = images.shape[2:]
        self.seen.append(tuple(images.shape))
        boxes = torch.zeros(len(images), 2, 4)
        logits = torch.full((len(images), 2, 2), -20.0)
        for image, colour in ((i, c) for i in range(len(images)) for c in range(2)):
            rows, columns = (images[image, colour] > 0.5).nonzero(as_tuple=True)
            corners = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            boxes[image, colour] = xyxy_to_cxcywh(corners / torch.tensor([width, height, width, height]))
            logits[image, colour, colour] = torch.tensor(float(self.sure(width))).logit()
        return DetectorOutput([Predictions(logits, boxes)], None)


def picture(width=200, height=120, red=(20, 10, 60, 50), green=(100, 70, 190, 100)):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for colour, (left, top, right, bottom) in enumerate((red, green)):
        pixels[top:bottom, left:right, colour] = 255
    return Image.fromarray(pixels)


def bounds_detector(**settings):
    return Detector(Bounds(**settings), ("red", "green"), (5, 9), PLAIN, device="cpu", as_it_is=True)


def boxes_of(detections):
    return {one.class_name: one.box_xyxy for one in detections}


@pytest.mark.parametrize("merge", ["wbf", "soft_nms"])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.25)])
def test_what_is_found_does_not_move(scales, hflip, vflip, merge):
    """Every view gives the same boxes in pixels of the picture, but for the rounding of its own pixels."""
    detector = bounds_detector()
    settings = TTA(scales=scales, hflip=hflip, vflip=vflip, merge=merge)
    found = detector.predict(picture(), tta=settings, threshold=0.5)
    assert sorted(one.class_name for one in found) == ["green", "red"]
    assert found.scores.tolist() == pytest.approx([0.9, 0.9])
    assert found.query_ids.tolist() == [-1, -1]
    assert (found.classes, found.category_ids) == (("red", "green"), (5, 9))
    pixel = 120 / (64 * 0.75)  # of the smallest view, in pixels of the picture
    for name, expected in (("red", (20, 10, 60, 50)), ("green", (100, 70, 190, 100))):
        assert boxes_of(found)[name] == pytest.approx(expected, abs=pixel)
    assert len(detector.model.seen) == settings.num_views == len(scales) * (1 + hflip) * (1 + vflip)


def test_views_have_the_sizes_of_their_scales():
    detector = bounds_detector()
    detector.predict(picture(), tta=True)
    short = [48, 48, 64, 64, 80, 80]
    assert [shape[2:] for shape in detector.model.seen] == [(one, one * 200 // 120) for one in short]


def test_without_it_nothing_changes(detector):
    image = picture(71, 40, (1, 2, 30, 20), (40, 5, 60, 30))
    plain = detector.predict(image, threshold=0.0, tta=False)
    (other,) = detector.detect(to_model_input(image, detector.preprocessing)[None], [image.size])
    assert torch.equal(plain.boxes_xyxy, other.boxes_xyxy)
    assert torch.equal(plain.scores, other.scores)
    assert (plain.query_ids >= 0).all()


class Turning(Bounds):
    """As `Bounds`, but surer of green and of red in turns."""

    def forward(self, images, padding_mask, targets=None):
        output = super().forward(images, padding_mask, targets)
        better = len(self.seen) % 2
        output.final.logits[:, better, better] += 0.2
        return output


def test_an_object_beyond_the_largest_number_counts_as_found():
    """Green is the best of the first view and the last, and second in the other one."""
    detector = Detector(Turning(lambda width: 0.6), ("red", "green"), (5, 9), PLAIN, device="cpu", as_it_is=True)
    surer = torch.sigmoid(torch.tensor(0.6).logit() + 0.2).item()
    (found,) = detector.predict(picture(), tta=TTA(hflip=False), threshold=0.0, max_detections=1)
    assert found.class_name == "green"
    assert found.score == pytest.approx((0.6 + 2 * surer) / 3, abs=1e-4)


def test_batches_of_several_sizes_give_what_single_pictures_give(detector):
    pictures = [picture(), picture(), picture(90, 140, (20, 10, 60, 50), (10, 70, 80, 100)), picture(90, 140)]
    together = detector.predict(pictures, threshold=0.0, tta=True, batch_size=3)
    for one, image in zip(together, pictures, strict=True):
        alone = detector.predict(image, threshold=0.0, tta=True)
        torch.testing.assert_close(one.scores, alone.scores, rtol=0, atol=1e-4)
        assert len(one) == len(alone)


def test_the_threshold_is_for_the_merged_score():
    """Two of three sizes see the objects with 0.6, one with 0.1: their mean is 0.433."""
    detector = bounds_detector(sure=lambda width: 0.1 if width < 100 else 0.6)
    settings = TTA(hflip=False)
    assert len(detector.predict(picture(), tta=settings, threshold=0.44)) == 0
    found = detector.predict(picture(), tta=settings, threshold=0.43)
    assert found.scores.tolist() == pytest.approx([1.3 / 3, 1.3 / 3], rel=1e-4)


@pytest.mark.parametrize("flip", [Flip(h, v) for h in (False, True) for v in (False, True)])
def test_boxes_are_mapped_back_exactly(flip):
    """A flipped picture shows the flipped box; both in whole pixels, so that not a bit may differ."""
    box = torch.tensor([[20.0, 10.0, 60.0, 50.0]])
    image = torch.zeros(1, 3, 120, 200)
    image[0, :, 10:50, 20:60] = 1
    rows, columns = (flipped(image, flip)[0, 0] > 0).nonzero(as_tuple=True)
    seen = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]).float()
    back = flipped_back(Detections(seen, torch.ones(1), torch.zeros(1, dtype=torch.long)), (200, 120), flip)
    assert torch.equal(back.boxes_xyxy, box)
    assert flip == (False, False) or not torch.equal(seen, box)


def test_fusion_by_hand():
    """IoU of the first two is 80 / 120; the third is far off; four views were looked at."""
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0], [50.0, 50.0, 60.0, 70.0]])
    scores = np.array([0.5, 0.3, 0.8])
    fused, found = weighted_box_fusion(boxes, scores, num_views=4, iou=0.55)
    order = fused[:, 0].argsort()
    # (0.5 * 0 + 0.3 * 2) / 0.8 = 0.75, and so on. Scores: a mean of 0.4 in two of four views; 0.8 in one.
    np.testing.assert_allclose(fused[order], [[0.75, 0, 10.75, 10], [50, 50, 60, 70]])
    np.testing.assert_allclose(found[order], [0.2, 0.2])
    fused, _ = weighted_box_fusion(boxes, scores, num_views=4, iou=0.7)
    assert len(fused) == 3


def test_more_boxes_than_views_count_as_all():
    boxes = np.tile([[0.0, 0.0, 10.0, 20.0]], (5, 1))
    fused, found = weighted_box_fusion(boxes, np.array([0.9, 0.9, 0.3, 0.3, 0.1]), num_views=2, iou=0.55)
    np.testing.assert_allclose(fused, boxes[:1])
    np.testing.assert_allclose(found, [0.5])


def test_a_box_joins_the_one_that_it_overlaps_most():
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0], [3.0, 0.0, 13.0, 10.0]])
    fused, found = weighted_box_fusion(boxes, np.array([0.9, 0.8, 0.4]), num_views=3, iou=0.5)
    # The third overlaps the first by 7 / 13 and the second by 9 / 11.
    np.testing.assert_allclose(fused, [[0, 0, 10, 10], [4.4 / 1.2, 0, 10 + 4.4 / 1.2, 10]])
    np.testing.assert_allclose(found, [0.3, 0.4])


def test_scores_of_zero_and_boxes_without_extent_are_fine():
    boxes = np.array([[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 10.0, 10.0]])
    for fused, found in (
        weighted_box_fusion(boxes, np.zeros(3), num_views=2, iou=0.5),
        soft_nms(boxes, np.zeros(3), iou=0.5),
    ):
        assert np.isfinite(fused).all()
        assert (found == 0).all()


def test_soft_suppression_by_hand():
    """The second overlaps the first by 80 / 120, the third by 40 / 160 and the second by 60 / 140."""
    boxes = np.array([[2.0, 0.0, 12.0, 10.0], [0.0, 0.0, 10.0, 10.0], [6.0, 0.0, 16.0, 10.0]])
    kept, scores = soft_nms(boxes, np.array([0.6, 0.9, 0.5]), iou=0.3)
    # First 0.9; of the rest 0.6 falls to 0.2, so that 0.5 is next, which leaves 0.2 * (1 - 60 / 140).
    np.testing.assert_allclose(kept, boxes[[1, 2, 0]])
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.2 * 80 / 140])


def detections(*rows):
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def test_classes_never_meet():
    box = (10.0, 20.0, 30.0, 60.0)
    found = merged([detections((box, 0.8, 1)), detections((box, 0.6, 0), (box, 0.4, 1))], TTA())
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.6, 0.3])
    assert found.boxes_xyxy.tolist() == [list(box)] * 2


def test_nothing_in_any_view_is_nothing():
    found = merged([detections(), detections()], TTA())
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


def test_only_the_best_are_kept():
    views = [detections(*(((20.0 * n, 0.0, 20.0 * n + 10, 9.0), 0.1 * n, n % 3) for n in range(1, 9)))]
    found = merged(views, TTA(), max_detections=3, threshold=0.65)
    assert found.scores.tolist() == pytest.approx([0.8, 0.7])
    assert len(merged(views, TTA(), max_detections=3)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "tta.scales has 0 numbers; it needs 1 to 20"),
        ({"scales": (1.0, 0.0)}, r"tta.scales has 0.0; each must be in 0.1..10"),
        ({"scales": (float("nan"),)}, "tta.scales has nan"),
        ({"iou": 1.0}, "tta.iou is 1.0; it must be above 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TTA(**settings)


def test_a_view_that_is_too_large_is_refused(detector):
    detector.preprocessing = replace(PLAIN, short_side=4000, max_side=6000)
    with pytest.raises(ConfigError, match=r"tta\.scales has 10\.0, too much for this detector: .* 60000 pixels"):
        detector.predict(picture(), tta=TTA(scales=(10.0,)))
