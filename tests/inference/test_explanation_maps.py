import numpy as np
import pytest
import torch

from deformable_detr.inference.explanation_colors import DARKEST, HEAT, mixed
from deformable_detr.inference.explanation_maps import draw_chained, draw_dense, draw_gradients, smoothed
from tests.explained import by_hand, white, without_points


def test_the_chained_map_lies_where_its_shares_are():
    found = by_hand()
    drawn = draw_chained(white(), found, 0, legend=False)
    assert drawn.size == (1000, 667)
    # The cell in row 11 of 25 and column 19 of 38 is the largest, and has the full colour.
    x, y = round(19.5 / 38 * 1000), round(11.5 / 25 * 667)
    assert drawn.getpixel((x, y)) == pytest.approx(mixed((255, 255, 255), HEAT, DARKEST), abs=4)
    # The second has a sixth: the square root of that.
    second = drawn.getpixel((round(1.5 / 38 * 1000), round(0.5 / 25 * 667)))
    assert second == pytest.approx(mixed((255, 255, 255), HEAT, DARKEST * 6**-0.5), abs=6)
    assert drawn.getpixel((800, 600)) == (255, 255, 255)
    assert draw_chained(white(), found, 0).width > 1300


def test_detr_s_map_is_the_mean_of_its_heads_or_one():
    found = without_points(by_hand())
    place, other = (round(4.5 / 10 * 1000), round(3.5 / 7 * 667)), (50, 20)
    both = draw_dense(white(), found, 0, layer=1, legend=False)
    assert both.getpixel(place) == pytest.approx(both.getpixel(other), abs=3)
    one = draw_dense(white(), found, 0, layer=1, head=1, legend=False)
    assert one.getpixel(place) == (255, 255, 255)
    assert one.getpixel(other) == pytest.approx(mixed((255, 255, 255), HEAT, DARKEST), abs=3)
    assert draw_dense(white(), found, 0, layer=0).width > 1300


def test_five_gradients_each_on_its_own_scale():
    gradients = torch.zeros(1, 5, 200, 300)
    for number, x in enumerate((110, 130, 150, 170, 190)):  # class, x, y, w, h
        gradients[0, number, 90, x] = 10.0 ** (number - 2)
    found = by_hand(gradients=gradients, gradient_kind="direct")
    drawn = draw_gradients(white(), found, 0)
    pixels, darkest = np.asarray(drawn).astype(int), mixed((255, 255, 255), HEAT, DARKEST)
    width, gap = 437, 12
    for place, x in enumerate((130, 150, 170, 190, 110)):  # drawn as x, y, w, h, class
        left, top = gap + place % 3 * (width + gap), gap + place // 3 * (round(width * 2 / 3) + 30 + gap)
        cell = pixels[top + 60 : top + 200, left : left + width]
        is_heat = (abs(cell - darkest) <= 20).all(2)
        columns = np.nonzero(is_heat)[1]
        assert (columns.min() + columns.max()) / 2 == pytest.approx(x / 300 * width, abs=4)
    with pytest.raises(ValueError, match="no gradients were taken"):
        draw_gradients(white(), by_hand(), 0)


def test_the_legend_of_wide_gradients_stays_readable():
    wide = by_hand(size_wh=(3000, 60), gradients=torch.ones(1, 5, 20, 300), gradient_kind="total")
    wide.detections.boxes_xyxy[0] = torch.tensor([100.0, 10.0, 2000.0, 50.0])
    drawn = draw_gradients(white((3000, 60)), wide, 0)
    assert drawn.height > 300
    ink = (np.asarray(drawn)[130:, :430] < 60).all(2)
    assert ink.any(1).sum() > 120  # its letters, in their own size


def test_smoothing_is_a_gaussian():
    maps = torch.zeros(2, 61, 71, dtype=torch.float64)
    maps[0, 30, 40], maps[1, 25, 30] = 1.0, 2.0
    smooth = smoothed(maps, 4.0)
    assert smooth.sum((1, 2)).tolist() == pytest.approx([1.0, 2.0])
    assert float(smooth[0, 30, 44] / smooth[0, 30, 40]) == pytest.approx(np.exp(-0.5))
    assert float(smooth[1, 29, 30] / smooth[1, 25, 30]) == pytest.approx(np.exp(-0.5))
