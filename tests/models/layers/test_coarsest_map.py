import math

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.coarsest_map import CoarsestMap, LearnedPosition, SinePosition
from tests.models.layers.test_position import wave
from tests.models.layers.test_pyramid import make_batch


def make_map(position, *, dilation=False, dim=16):
    backbone = Backbone("resnet10t", num_maps=1, dilation=dilation, frozen_stages=0, frozen_batch_norm=True)
    return CoarsestMap(backbone, dim, position).eval()


@pytest.mark.parametrize(("dilation", "shape"), [(False, (3, 5)), (True, (6, 9))])
def test_tokens_of_one_map(dilation, shape):
    features = make_map(SinePosition(16), dilation=dilation)
    images, mask = make_batch((96, 70), (64, 130))
    memory = features(images, mask)
    assert memory.spatial_shapes == (shape,)
    assert memory.tokens.shape == memory.position.shape == (2, shape[0] * shape[1], 16)
    assert memory.valid_ratios.shape == (2, 1, 2)
    last = features.backbone(images)[-1]
    # A projection without a norm, row by row.
    weight, bias = features.projection.weight[:, :, 0, 0], features.projection.bias
    row, column = 1, 2
    expected = weight @ last[1, :, row, column] + bias
    torch.testing.assert_close(memory.tokens[1, row * shape[1] + column], expected, rtol=1e-4, atol=1e-4)
    padded = memory.padding_mask.view(2, *shape)
    assert not padded[0, :, 0].any()
    assert padded[0, :, -1].all()
    assert padded[1, -1].all()


def test_sines_begin_at_one():
    mask = torch.ones(2, 5, 7, dtype=torch.bool)
    mask[0, :4, :3] = False
    mask[1, :2, :7] = False
    embedded = SinePosition(8)(mask)
    for image, (height, width) in enumerate([(4, 3), (2, 7)]):
        for row in range(height):
            for column in range(width):
                for feature in range(4):
                    by_row = wave((row + 1) / height * 2 * math.pi, feature, 4)
                    by_column = wave((column + 1) / width * 2 * math.pi, feature, 4)
                    assert embedded[image, row, column, feature].item() == pytest.approx(by_row, abs=1e-4)
                    assert embedded[image, row, column, 4 + feature].item() == pytest.approx(by_column, abs=1e-4)


def test_learned_positions_are_of_the_column_then_of_the_row():
    position = LearnedPosition(6)
    for weight in (position.rows.weight, position.columns.weight):
        assert 0 <= weight.min() < 0.1
        assert 0.9 < weight.max() <= 1
    embedded = position(torch.zeros(2, 4, 7, dtype=torch.bool))
    assert embedded.shape == (2, 4, 7, 6)
    expected = torch.cat([position.columns.weight[5], position.rows.weight[2]])
    assert torch.equal(embedded[1, 2, 5], expected)
    position(torch.zeros(1, 50, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"at most 50 x 50, and this one has 51 x 4; use smaller images, or position"):
        position(torch.zeros(1, 4, 51, dtype=torch.bool))


def test_everything_is_gathered_once():
    features = make_map(LearnedPosition(16))
    *stages, whole = features.gathered_together()
    assert whole is features
    assert stages == features.backbone.stages() != []
