"""Bounds of the whole numbers among the settings of a run."""

from deformable_detr.core.errors import ConfigError

LARGEST_COUNT = 1_000_000
"""Largest count among the settings of a run, such as its epochs."""
LARGEST_SEED = 2**63 - 1
"""Largest seed; the random generators of PyTorch take no more than 64 bits."""


def check_counts(group: object, title: str, least: int, *names: str) -> None:
    """Refuse whole numbers that no run could mean; "auto" is allowed.

    Args:
        group: settings.
        title: name of the group.
        least: smallest value.
        names: settings in it; the largest value is `LARGEST_COUNT`, and for a seed `LARGEST_SEED`.

    Raises:
        ConfigError: a value lies outside; the message has it and the bound.
    """
    for name in names:
        value, most = getattr(group, name), LARGEST_SEED if name == "seed" else LARGEST_COUNT
        if value != "auto" and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ConfigError(f"{title}.{name} is {value}; it must be {bound}")
