from deformable_detr.inference.explanation_colors import (
    AGAINST,
    DARKEST,
    FOR,
    HEAT,
    LEVEL_COLORS,
    diverging,
    level_color,
    mixed,
    shades,
)


def test_levels_have_colours_of_their_own():
    assert len(set(LEVEL_COLORS)) == len(LEVEL_COLORS) >= 4
    assert [level_color(level) for level in (0, 3, len(LEVEL_COLORS))] == [
        LEVEL_COLORS[0],
        LEVEL_COLORS[3],
        LEVEL_COLORS[0],
    ]


def test_effects_go_from_red_over_white_to_blue():
    assert [diverging(share) for share in (-1.0, 0.0, 1.0)] == [AGAINST, (255, 255, 255), FOR]
    assert diverging(0.25) == mixed((255, 255, 255), FOR, 0.5)
    assert diverging(-0.25) == mixed((255, 255, 255), AGAINST, 0.5)


def test_maps_begin_white():
    for power in (0.5, 1.0):
        assert (shades(power)[0], shades(power)[-1]) == ((255, 255, 255), mixed((255, 255, 255), HEAT, DARKEST))
    assert sum(shades()[5]) < sum(shades(1.0)[5])
