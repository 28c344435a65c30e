import numpy as np
import pytest
from PIL import Image

from deformable_detr.inference.explanation_view import (
    draw_cross,
    draw_dashed,
    draw_dots,
    draw_label,
    draw_solid,
    draw_square,
    view_of,
)
from tests.explained import white

BLUE = (0, 114, 178)
WHOLE = (0.0, 0.0, 300.0, 200.0)


def changed(view):
    """(left, top, right, bottom) of what is not white."""
    rows, columns = np.nonzero((np.asarray(view.picture) != 255).any(2))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((100, 60, 140, 90), (60, 15, 180, 135)),  # three times the longer side, in the middle
        ((0, 0, 20, 10), (0, 0, 60, 60)),  # moved inside
        ((290, 190, 330, 220), (180, 80, 300, 200)),
        ((100, 60, 180, 90), (20, 0, 260, 200)),  # no higher than the image
        ((50, 60, 250, 90), (0, 0, 300, 200)),  # all of it
        ((10, 10, 10, 10), (2, 2, 18, 18)),
    ],
)
def test_the_part_around_an_object(box, window):
    view = view_of(white(), tuple(map(float, box)))
    assert view.window == window
    assert max(view.picture.size) == 1000
    assert view.is_cropped == (window != (0, 0, 300, 200))
    scale = 1000 / max(window[2] - window[0], window[3] - window[1])
    assert view.scale == pytest.approx(scale)
    assert view.place(window[0] + 3.0, window[1] + 5.0) == pytest.approx((3 * scale, 5 * scale))


def test_the_photo_is_lightened_and_gray_if_wanted():
    photo = Image.new("RGB", (300, 200), (200, 100, 0))
    light = view_of(photo, (100.0, 60.0, 140.0, 90.0)).picture
    expected = [round(0.65 * value + 0.35 * 255) for value in (200, 100, 0)]
    assert light.getpixel((500, 500)) == pytest.approx(expected, abs=1)
    red, green, blue = view_of(photo, (100.0, 60.0, 140.0, 90.0), gray=True).picture.getpixel((500, 500))
    assert red == green == blue
    assert photo.getpixel((120, 70)) == (200, 100, 0)


def test_small_pictures_have_thin_lines():
    assert view_of(white(), WHOLE, long_side=250).unit == 0.5
    assert view_of(white(), WHOLE, long_side=800).unit == 0.8


def test_dots_are_discs_of_their_colour_with_a_white_rim():
    view = view_of(white(), WHOLE)
    draw_dots(view, [(400.0, 300.0, 20.0, BLUE), (600.4, 300.0, 2.0, BLUE)])
    pixels = np.asarray(view.picture).astype(int)
    filled = (abs(pixels - [64, 149, 197]) <= 2).all(2)
    near = filled[:, :500]
    assert near.sum() == pytest.approx(np.pi * 20**2, rel=0.06)
    rows, columns = np.nonzero(near)
    assert (rows.mean(), columns.mean()) == pytest.approx((300, 400), abs=0.5)
    assert 4 <= filled[:, 500:].sum() <= 14
    assert (pixels[300, 400 + 21] > 240).all()  # the rim
    assert (pixels[300, 400 + 22] < 235).all()  # its shadow
    assert (pixels[300, 400 + 25] == 255).all()


def test_dots_at_the_edge_are_cut_off():
    view = view_of(white(), WHOLE)
    draw_dots(view, [(0.0, 0.0, 20.0, BLUE)])
    assert changed(view)[:2] == (0, 0)
    assert max(changed(view)) <= 24


def test_lines_are_where_the_box_is():
    for draw in (lambda view, box: draw_solid(view, box, BLUE), lambda view, box: draw_dashed(view, box, 2.0)):
        view = view_of(white(), WHOLE)
        draw(view, (30.0, 60.0, 150.0, 120.0))
        assert changed(view) == pytest.approx((100, 200, 500, 400), abs=4)
        assert view.picture.getpixel((300, 300)) == (255, 255, 255)
    dark = (np.asarray(view.picture).astype(int)[198:203, 110:490].min(0) < 100).all(1)
    assert 0.3 < dark.mean() < 0.7  # dashes


def test_a_square_of_a_cell_is_faint():
    view = view_of(white(), WHOLE)
    draw_square(view, 500.0, 300.0, (80.0, 40.0), BLUE)
    assert changed(view) == pytest.approx((460, 280, 540, 320), abs=1)
    assert min(view.picture.getpixel((500, 300))) > 220


def test_a_cross_and_a_label():
    view = view_of(white(), WHOLE)
    draw_cross(view, 150.0, 90.0)
    left, top, right, bottom = changed(view)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((500, 300), abs=1)
    for x, y, centred, place in (
        (700.0, 500.0, False, (700, None, None, 500)),
        (5000.0, 5000.0, True, (None, None, 999, 666)),
    ):
        view = view_of(white(), WHOLE)
        draw_label(view, x, y, "b2-b3", centred=centred)
        for edge, expected in zip(changed(view), place, strict=True):
            assert expected is None or abs(edge - expected) <= 1
