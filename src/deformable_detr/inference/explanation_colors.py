"""Colours of explanations: of levels, of effects, and of maps."""

from deformable_detr.inference.drawing import PALETTE, Color

LEVEL_COLORS: tuple[Color, ...] = tuple(PALETTE[number] for number in (6, 0, 2, 5, 4, 1, 3, 8))
"""Colours of the levels, finest first: blue, orange, green, purple, and more for networks of more than four."""
FOR: Color = (5, 80, 170)
"""Colour of points that speak for the class."""
AGAINST: Color = (190, 20, 30)
"""Colour of points that speak against the class."""
HEAT: Color = (0, 84, 130)
"""Colour of maps; the darker, the more."""
DARKEST = 0.85
"""Share of `HEAT` where a map is largest."""
_WHITE = (255, 255, 255)


def level_color(level: int) -> Color:
    """Colour of a level, from 0, finest first."""
    return LEVEL_COLORS[level % len(LEVEL_COLORS)]


def diverging(share: float) -> Color:
    """Colour of an effect: blue for the class, white for none, red against it.

    Args:
        share: effect as a share of the largest, -1..1.
    """
    strength = min(1.0, abs(share)) ** 0.5
    return mixed(_WHITE, FOR if share > 0 else AGAINST, strength)


def mixed(first: Color, second: Color, share: float) -> Color:
    """Colour between two.

    Args:
        first: colour at 0.
        second: colour at 1.
        share: share of the second, 0..1.
    """
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def shades(power: float = 0.5) -> tuple[Color, ...]:
    """Colours of a map from 0 to its largest value, on white paper.

    Args:
        power: power of the value that the darkness follows.
    """
    return tuple(mixed(_WHITE, HEAT, DARKEST * (number / 20) ** power) for number in range(21))
