"""Levels, masks and valid ratios of padded batches."""

import pytest
import torch

from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.pyramid import Pyramid


def make_pyramid(num_levels, *, per_image=False):
    backbone = Backbone(
        "resnet10t", num_maps=min(num_levels, 3), dilation=False, frozen_stages=0, frozen_batch_norm=True
    )
    pyramid = Pyramid(backbone, num_levels=num_levels, dim=32, per_image=per_image)
    torch.nn.init.normal_(pyramid.level_embed)
    return pyramid.eval()


def make_batch(*sizes_hw):
    height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
    images = torch.zeros(len(sizes_hw), 3, height, width)
    mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes_hw):
        images[index, :, :h, :w] = torch.randn(3, h, w)
        mask[index, :h, :w] = False
    return images, mask


@pytest.mark.parametrize(
    ("num_levels", "shapes"),
    [
        (1, ((3, 4),)),
        (2, ((6, 7), (3, 4))),
        (3, ((12, 14), (6, 7), (3, 4))),
        (4, ((12, 14), (6, 7), (3, 4), (2, 2))),
        (5, ((12, 14), (6, 7), (3, 4), (2, 2), (1, 1))),
    ],
)
def test_any_number_of_levels(num_levels, shapes):
    memory = make_pyramid(num_levels)(*make_batch((96, 110), (40, 64)))
    assert memory.spatial_shapes == shapes
    positions = sum(height * width for height, width in shapes)
    assert memory.tokens.shape == memory.position.shape == (2, positions, 32)
    assert memory.valid_ratios.shape == (2, num_levels, 2)


def test_valid_ratios_are_w_h():
    memory = make_pyramid(3)(*make_batch((64, 128), (32, 96)))
    torch.testing.assert_close(memory.valid_ratios[0], torch.ones(3, 2))
    torch.testing.assert_close(memory.valid_ratios[1], torch.tensor([[0.75, 0.5]]).expand(3, 2))
    finest = memory.padding_mask[1, : 8 * 16].view(8, 16)
    assert not finest[:4, :12].any()
    assert finest[4:].all()
    assert finest[:, 12:].all()


@torch.no_grad()
def test_per_image_an_image_does_not_see_its_neighbours_padding():
    images, mask = make_batch((70, 100), (96, 61))
    pyramid = make_pyramid(4, per_image=True)
    together = pyramid(images, mask)
    for index, (height, width) in enumerate([(70, 100), (96, 61)]):
        alone = pyramid(images[index : index + 1, :, :height, :width], mask[index : index + 1, :height, :width])
        kept = ~together.padding_mask[index]
        assert int(kept.sum()) == alone.tokens.shape[1]
        torch.testing.assert_close(together.tokens[index][kept], alone.tokens[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.position[index][kept], alone.position[0], rtol=1e-4, atol=1e-4)
        assert (together.tokens[index][~kept] == 0).all()


def test_a_level_of_one_pixel():
    memory = make_pyramid(5).train()(*make_batch((40, 50)))
    assert memory.spatial_shapes[-1] == (1, 1)
    assert memory.tokens.isfinite().all()
