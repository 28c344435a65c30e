import pytest
import torch
from torch import nn

from deformable_detr.core.types import DetectorOutput, Predictions
from deformable_detr.inference.pixel_gradients import TARGETS, pixel_gradients
from tests.recorded import ALL, images_of, network_of


class Moments(nn.Module):
    """Query 1 answers with sums of the pixels that are known: its gradients can be written down."""

    def forward(self, images, padding_mask, targets=None):
        total = images.sum((1, 2, 3))
        logits = torch.stack([total * 0, 3 * total], dim=1)[..., None].expand(-1, 2, 2)
        left, top = images[:, 0, :, :2].sum((1, 2)), images[:, 1, 0].sum(1)
        box = torch.stack([left, top, total, total * 0], dim=1)
        return DetectorOutput([Predictions(logits, torch.stack([box * 0, box], dim=1))], None)


def test_gradients_by_hand():
    image = torch.rand(1, 3, 4, 6)
    found = pixel_gradients(Moments(), image, torch.tensor([1]), torch.tensor([0]))
    assert found.shape == (1, len(TARGETS), 4, 6)
    by_name = dict(zip(TARGETS, found[0], strict=True))
    torch.testing.assert_close(by_name["class"], torch.full((4, 6), 3 * 3**0.5))
    left = torch.zeros(4, 6)
    left[:, :2] = 6  # pixels of the input, which is 6 wide
    torch.testing.assert_close(by_name["x"], left)
    top = torch.zeros(4, 6)
    top[0] = 4
    torch.testing.assert_close(by_name["y"], top)
    torch.testing.assert_close(by_name["w"], torch.full((4, 6), 6 * 3**0.5))
    assert not by_name["h"].any()


@pytest.mark.parametrize("name", ALL)
def test_kinds(name):
    """Only where boxes go from layer to layer do the kinds differ, and then not in what asks for no box."""
    network, image = network_of(name), images_of(padded=False)[0][:1]
    queries, classes = torch.tensor([2, 9]), torch.tensor([1, 4])
    direct = pixel_gradients(network, image, queries, classes)
    total = pixel_gradients(network, image, queries, classes, kind="total")
    assert direct.shape == total.shape == (2, 5, 96, 128)
    assert torch.equal(image, images_of(padded=False)[0][:1])
    if name in ("base", "detr"):
        torch.testing.assert_close(direct, total)
    else:
        assert not torch.allclose(direct, total, rtol=0.01)


@pytest.mark.parametrize("name", ["base", "refine", "detr"])  # the others embed boxes in float32
def test_total_gradients_are_finite_differences(name):
    network, image = network_of(name, torch.float64), images_of(torch.float64)[0][:1]
    (norms,) = pixel_gradients(network, image, torch.tensor([2]), torch.tensor([1]), kind="total")
    row, column = divmod(int(norms[0].argmax()), 128)
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    slopes = []
    for channel in range(3):
        values = []
        for step in (1e-6, -1e-6):
            moved = image.clone()
            moved[0, channel, row, column] += step
            with torch.no_grad():
                final = network(moved, mask).final
            size = torch.tensor([128, 96, 128, 96])
            values.append(torch.cat([final.logits[0, 2, 1:2], final.boxes[0, 2] * size]))
        slopes.append((values[0] - values[1]) / 2e-6)
    found = torch.linalg.vector_norm(torch.stack(slopes), dim=0)
    torch.testing.assert_close(norms[:, row, column], found, rtol=1e-4, atol=1e-6)


def test_no_detections():
    nothing = torch.zeros(0, dtype=torch.long)
    assert pixel_gradients(Moments(), torch.rand(1, 3, 4, 6), nothing, nothing).shape == (0, 5, 4, 6)
