"""Settings of the augmentation of training images."""

from dataclasses import dataclass, replace
from math import isfinite

from deformable_detr.core.errors import ConfigError

PAPER_SHORT_SIDES = tuple(range(480, 801, 32))
LARGEST_SIDE = 20_000
"""Largest length of a side, in pixels, that images can be resized to."""


_SHARES = (
    *("crop_probability", "hflip", "vflip", "rotate90", "color_jitter", "photometric", "zoom_out", "iou_crop"),
    *("mosaic", "mixup", "mixing_off", "min_visible"),
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of the augmentation of training images. The defaults are the paper's; what it does not use is off.

    The paper uses the augmentation of DETR (arXiv 2005.12872, section 4): flip, then either resize to one of
    `short_sides`, or, with `crop_probability`, resize to one of `crop_short_sides`, cut out a random window of
    `crop_min` to `crop_max` pixels a side, and resize that to one of `short_sides`. With other settings on, the order
    is: mosaic or zoom-out, mixup, flips and turns, crops, scale jitter, resize, colours.
    """

    short_sides: tuple[int, ...] = PAPER_SHORT_SIDES
    """Lengths in pixels of the shorter side, one of which is chosen at random for each image."""
    max_side: int = 1333
    """Longest side in pixels; it is kept even if the shorter side then becomes shorter than chosen."""
    crop_probability: float = 0.5
    """Probability of the paper's crop."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Lengths in pixels of the shorter side before the crop, one of which is chosen at random."""
    crop_min: int = 384
    """Shortest side of the crop, in pixels."""
    crop_max: int = 600
    """Longest side of the crop, in pixels."""
    hflip: float = 0.5
    """Probability of a horizontal flip: left and right exchanged."""
    vflip: float = 0.0
    """Probability of a vertical flip: for images taken from above, through a microscope and the like."""
    rotate90: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees; with 0.75 all four directions are equally likely."""
    color_jitter: float = 0.0
    """Strength of the colour jitter, 0..1; 1 varies brightness, contrast and saturation by up to 40 %, hue by 5 %."""
    photometric: float = 0.0
    """Probability of each of the stronger changes of brightness, contrast, saturation and hue, see `distort`."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor on the size of all objects: large-scale jitter.

    A factor above 1 cuts out a window, but not from a mosaic or an image that was zoomed out.
    """
    zoom_out: float = 0.0
    """Probability of an image up to `zoom_out_most` times smaller on a plain background; not applied to a mosaic."""
    zoom_out_most: float = 4.0
    """Largest factor of the zoom-out, 1..100."""
    iou_crop: float = 0.0
    """Probability of a crop that overlaps some object by a random IoU, see `geometry.iou_crop`."""
    mosaic: float = 0.0
    """Probability of a mosaic: four images in one."""
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest factor on the size at which an image would just fit the mosaic."""
    mixup: float = 0.0
    """Probability of mixup: another image blended in."""
    mixing_off: float = 0.15
    """Share of the epochs without mosaic and mixup, the last ones: the model ends with images as they really are."""
    until: float = 1.0
    """Share of the epochs that vary images in all these ways, above 0 and up to 1 = all. In the epochs after it, images
    are only flipped, turned and resized, see `plain`."""
    min_visible: float = 0.0
    """Smallest share of its area that an object must keep at a cut; with 0 only objects wholly outside are dropped."""
    min_side: float = 0.0
    """Shortest side in pixels, at the final size, of an object that is kept."""

    def __post_init__(self) -> None:
        check_sides("augmentation", self.short_sides, self.max_side)
        check_sides("augmentation crop", self.crop_short_sides, None)
        if not 1 <= self.crop_min <= self.crop_max <= LARGEST_SIDE:
            raise ConfigError(
                f"augmentation.crop_min is {self.crop_min} and crop_max is {self.crop_max}; "
                f"they need 1 <= crop_min <= crop_max <= {LARGEST_SIDE}"
            )
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{name} is {value}; it must lie in 0..1")
        if not 0 < self.until <= 1:
            raise ConfigError(f"augmentation.until is {self.until}; it must be above 0 and at most 1")
        for name, highest in (("scale_jitter", 10.0), ("mosaic_scale", 1.0)):
            low, high = getattr(self, name)
            if not 0.01 <= low <= high <= highest:
                raise ConfigError(
                    f"augmentation.{name} is {low:g}, {high:g}; it needs two factors in 0.01..{highest:g}, "
                    "the smaller one first"
                )
        if not 1 <= self.zoom_out_most <= 100:
            raise ConfigError(f"augmentation.zoom_out_most is {self.zoom_out_most}; it must lie in 1..100")
        if not (isfinite(self.min_side) and self.min_side >= 0):
            raise ConfigError(f"augmentation.min_side is {self.min_side}; it must be a number of pixels, at least 0")

    def plain(self) -> "Augmentation":
        """Augmentation by flips, turns and resize alone: images as they really are, from all sides."""
        return replace(
            self,
            crop_probability=0.0,
            color_jitter=0.0,
            photometric=0.0,
            scale_jitter=(1.0, 1.0),
            zoom_out=0.0,
            iou_crop=0.0,
            mosaic=0.0,
            mixup=0.0,
        )

    def mixing_epochs(self, epochs: int) -> int:
        """Number of epochs, from the first, that have mosaic and mixup, of `epochs` in all."""
        return epochs - round(epochs * self.mixing_off)

    def varied_epochs(self, epochs: int) -> int:
        """Number of epochs, from the first, that vary images in all ways, of `epochs` in all; at least one."""
        return max(1, epochs - round(epochs * (1 - self.until)))

    def scaled(self, short_side: int) -> "Augmentation":
        """Augmentation for another image size: every length times `short_side` / the largest of `short_sides`.

        Lengths are rounded to whole pixels; short sides that become equal are kept once.

        Raises:
            ConfigError: `short_side` is below 1.
        """
        if short_side < 1:
            raise ConfigError(f"short_side is {short_side}; it must be at least 1")
        ratio = short_side / max(self.short_sides)

        def rescale(length: int) -> int:
            return max(1, round(length * ratio))

        return replace(
            self,
            short_sides=tuple(sorted({rescale(side) for side in self.short_sides})),
            max_side=rescale(self.max_side),
            crop_short_sides=tuple(sorted({rescale(side) for side in self.crop_short_sides})),
            crop_min=rescale(self.crop_min),
            crop_max=rescale(self.crop_max),
            min_side=self.min_side * ratio,
        )


def check_sides(where: str, short_sides: tuple[int, ...], max_side: int | None) -> None:
    """Check sides of images against each other and against the largest that there may be.

    Raises:
        ConfigError: a side is below 1, too large, or above the longest.
    """
    if not short_sides or min(short_sides) < 1:
        raise ConfigError(f"{where}: short sides are {short_sides}; they must be at least 1 pixel")
    largest = max(*short_sides, max_side or 1)
    if largest > LARGEST_SIDE:
        raise ConfigError(f"{where}: a side is {largest} pixels; {LARGEST_SIDE} are the most, so use a smaller size")
    if max_side is not None and max_side < max(short_sides):
        raise ConfigError(
            f"{where}: max_side is {max_side}, below the short side of {max(short_sides)}, which no image could reach; "
            f"raise max_side (the paper's ratio gives {round(max(short_sides) * 1333 / 800)})"
        )
