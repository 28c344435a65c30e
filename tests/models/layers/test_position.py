"""Embeddings against the formula written as loops."""

import math

import pytest
import torch

from deformable_detr.models.layers.position import embed_boxes, embed_pixels


def wave(angle, index, features):
    phase = angle / 10000 ** (2 * (index // 2) / features)
    return math.sin(phase) if index % 2 == 0 else math.cos(phase)


def test_pixels_of_a_padded_map():
    mask = torch.ones(2, 5, 7, dtype=torch.bool)
    mask[0, :4, :3] = False
    mask[1, :2, :7] = False
    embedded = embed_pixels(mask, 8)
    for image, (height, width) in enumerate([(4, 3), (2, 7)]):
        for row in range(height):
            for column in range(width):
                for feature in range(4):
                    by_row = wave((row + 0.5) / height * 2 * math.pi, feature, 4)
                    by_column = wave((column + 0.5) / width * 2 * math.pi, feature, 4)
                    assert embedded[image, row, column, feature].item() == pytest.approx(by_row, abs=1e-4)
                    assert embedded[image, row, column, 4 + feature].item() == pytest.approx(by_column, abs=1e-4)
    assert embedded.isfinite().all()


def test_boxes_in_the_order_cx_cy_w_h():
    box = torch.tensor([0.1, 0.3, 0.5, 0.9])
    embedded = embed_boxes(box[None, None], 24)[0, 0]
    for coordinate in range(4):
        for feature in range(6):
            expected = wave(box[coordinate].item() * 2 * math.pi, feature, 6)
            assert embedded[coordinate * 6 + feature].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("temperature", "offset"), [(20.0, 0.0), (10_000.0, -0.5)])
def test_other_temperatures_and_offsets(temperature, offset):
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[:, :, 4:] = True
    found = embed_pixels(mask, 8, temperature=temperature, offset=offset)[0]
    for y in range(3):
        for x in range(4):
            for half, (place, length) in enumerate(((y, 3), (x, 4))):
                angle = (place + 1 + offset) / (length + 1e-6) * 2 * math.pi
                for index in range(4):
                    phase = angle / temperature ** (2 * (index // 2) / 4)
                    wanted = math.cos(phase) if index % 2 else math.sin(phase)
                    assert float(found[y, x, 4 * half + index]) == pytest.approx(wanted, abs=1e-5)
