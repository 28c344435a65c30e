"""Augmentation presets by name, at the paper's image size; `Augmentation.scaled` brings them to another."""

import difflib
from collections.abc import Callable

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation


def paper() -> Augmentation:
    """Augmentation of the paper, flip, crop and resize: for COCO and data sets of its kind."""
    return Augmentation()


def light() -> Augmentation:
    """Augmentation by flip and a little scale and colour: for a few hundred photos of things that look much alike."""
    return Augmentation(crop_probability=0.0, color_jitter=0.5, scale_jitter=(0.8, 1.25), min_visible=0.25)


def strong() -> Augmentation:
    """Augmentation by all that suits photos, mosaic and mixup included: for long trainings that would overfit."""
    return Augmentation(
        crop_probability=0.0,
        photometric=0.5,
        scale_jitter=(0.5, 2.0),
        zoom_out=0.3,
        iou_crop=0.3,
        mosaic=0.5,
        mixup=0.15,
        min_visible=0.25,
        min_side=4.0,
    )


def aerial() -> Augmentation:
    """Augmentation in all directions and a wide range of scales: for images from above or through a microscope."""
    return Augmentation(
        crop_probability=0.0,
        vflip=0.5,
        rotate90=0.75,
        scale_jitter=(0.5, 2.0),
        color_jitter=0.5,
        min_visible=0.25,
        min_side=4.0,
    )


PRESETS: dict[str, Callable[[], Augmentation]] = {preset.__name__: preset for preset in (paper, light, strong, aerial)}


def find_preset(name: str) -> Augmentation:
    """Augmentation preset of this name.

    Raises:
        ConfigError: there is no such preset; the message offers the nearest name.
    """
    if name in PRESETS:
        return PRESETS[name]()
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
    raise ConfigError(f"no augmentation called {name!r}; {hint}")
