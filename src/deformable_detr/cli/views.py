"""Options of test-time augmentation, alike in `ddetr predict` and `ddetr eval`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deformable_detr.inference.tta import TTA

TTA_HELP = "Look at mirrored and resized views, too, and merge what they show: six passes instead of one."
"""Help of `--tta`."""
TTA_SET_HELP = 'A setting of --tta, such as "scales=[1,1.5]" or merge=soft_nms; implies --tta.'
"""Help of `--tta-set`."""


def tta_of(tta: bool, overrides: Sequence[str] | None) -> "TTA | None":
    """Settings of test-time augmentation from the command line; None without it.

    Args:
        tta: whether `--tta` was given.
        overrides: settings given by `--tta-set`, as name=value.

    Raises:
        ConfigError: there is no such setting, or a value is wrong.
    """
    if not (tta or overrides):
        return None
    from deformable_detr.core.config import apply_overrides
    from deformable_detr.inference.tta import TTA

    return apply_overrides(TTA(), overrides or [])
