import numpy as np
import pytest
import torch

from deformable_detr.inference.explanation_colors import FOR, LEVEL_COLORS, diverging
from deformable_detr.inference.explanation_drawing import draw_points
from tests.explained import by_hand, white, without_points

# The box 100 x 60 px at (100, 60) is shown in a window of 300 x 180 px whose top is at 0: 3.33 times as large.
SCALE = 1000 / 300


def filled(picture, color):
    """Rows and columns of the pixels of dots of a colour; three quarters of it lie on white, or on a faint square."""
    expected = [round(0.25 * 255 + 0.75 * value) for value in color]
    return np.nonzero((abs(np.asarray(picture).astype(int) - expected) <= 8).all(2))


def middle(picture, color, window):
    left, top = window[:2]
    rows, columns = filled(picture.crop(window), color)
    assert len(rows) > 20
    return left + (columns.min() + columns.max()) / 2, top + (rows.min() + rows.max()) / 2


def around_dot(x, y, reach=26):
    x, y = x * SCALE, y * SCALE
    return tuple(round(value) for value in (x - reach, y - reach, x + reach, y + reach))


def test_dots_by_effect_are_blue_and_red_where_the_points_are():
    drawn = draw_points(white(), by_hand(), 0, legend=False)
    assert drawn.size == (1000, 667)
    assert middle(drawn, diverging(-0.25), around_dot(150, 90)) == pytest.approx((500, 300), abs=2)
    rows, _ = filled(drawn, FOR)
    small, _ = filled(drawn, diverging(-0.25))
    assert len(rows) > 2 * len(small) > 0  # four times the effect; a line of the box lies below it
    assert not len(filled(drawn, LEVEL_COLORS[0])[0])


def test_dots_by_weight_have_the_colours_of_their_levels():
    drawn = draw_points(white(), by_hand(), 0, size="weight", legend=False)
    assert middle(drawn, LEVEL_COLORS[1], around_dot(150, 90)) == pytest.approx((500, 300), abs=2)
    assert middle(drawn, LEVEL_COLORS[0], around_dot(200, 90)) == pytest.approx((667, 300), abs=8)
    one = draw_points(white(), by_hand(), 0, size="weight", level=1, legend=False)
    assert not len(filled(one, LEVEL_COLORS[0])[0])
    assert len(filled(one, LEVEL_COLORS[1])[0]) > len(filled(drawn, LEVEL_COLORS[1])[0])  # its own largest
    head = draw_points(white(), by_hand(), 0, size="weight", head=1, legend=False)
    assert not len(filled(head, LEVEL_COLORS[1])[0])


def test_layers_without_effects_are_drawn_by_weight():
    first = draw_points(white(), by_hand(), 0, layer=0, legend=False)
    assert len(filled(first, LEVEL_COLORS[0])[0])
    with pytest.raises(ValueError, match="the effects of layer 1 were not measured"):
        draw_points(white(), by_hand(), 0, layer=0, size="effect")


def test_what_does_not_exist():
    with pytest.raises(ValueError, match="there is no head 2: the network has heads 0 to 1"):
        draw_points(white(), by_hand(), 0, head=2)
    with pytest.raises(ValueError, match="there is no level 2"):
        draw_points(white(), by_hand(), 0, level=2)
    with pytest.raises(ValueError, match="of an image of 300 x 200 pixels, and this one has 200 x 300"):
        draw_points(white((200, 300)), by_hand(), 0)
    with pytest.raises(IndexError):
        draw_points(white(), by_hand(), 0, layer=2)
    with pytest.raises(ValueError, match="there is no head 5"):
        draw_points(white(), without_points(by_hand()), 0, head=5)


def test_a_legend_and_other_sizes():
    drawn = draw_points(white(), by_hand(), 0)
    assert drawn.width > 1300
    assert (np.asarray(drawn)[:, 1000:] == FOR).all(2).sum() > 100
    assert draw_points(white(), by_hand(), 0, long_side=300, legend=False).size == (300, 200)


def test_no_effect_at_all_is_no_dot():
    found = by_hand()
    layer = found.layers[1]._replace(effects=torch.zeros(1, 2, 2, 1))
    drawn = draw_points(white(), by_hand(layers=(found.layers[0], layer)), 0)
    assert not len(filled(drawn.crop((0, 0, 1000, 667)), FOR)[0])


def test_detr_has_its_map_instead():
    with_map = draw_points(white(), without_points(by_hand()), 0, legend=False)
    assert with_map.size == (1000, 667)
