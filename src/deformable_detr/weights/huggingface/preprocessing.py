"""Preprocessing from and to the preprocessor_config.json of the library transformers."""

import math
import re
from collections.abc import Mapping
from typing import Any

from deformable_detr.core.config import fits, from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.data.preprocessing import Preprocessing

# Image processors of this family do the same as ours: short side, long side, bilinear, mean and standard deviation.
_FAMILY = re.compile(r"(Deformable|Conditional)?Detr(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_DEFAULT_MAX_SIDE = 1333
_BILINEAR = 2
# Settings of annotations, of input and output formats, and of padding, which the detector does itself.
_IGNORED = (
    "format do_convert_annotations do_pad pad_and_return_pixel_mask do_convert_rgb default_to_square data_format "
    "input_data_format return_tensors return_segmentation_masks device disable_grouping processor_class crop_size "
    "model_input_names"
)
_READ = (
    "image_processor_type feature_extractor_type size max_size image_mean image_std do_resize do_rescale do_normalize "
    "rescale_factor resample do_center_crop pad_size"
)


def preprocessing_from(settings: Mapping[str, Any]) -> tuple[Preprocessing, list[str]]:
    """Preprocessing that a preprocessor_config.json describes, and the names of its settings ignored as unknown.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: it describes what our preprocessing cannot do: another filter, a fixed size, a crop, no resize.
    """
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if kind is not None and not (isinstance(kind, str) and _FAMILY.fullmatch(kind)):
        raise CheckpointError(
            f"image processor {one_line(kind)} is not one of DETR's; there is no telling what it does to images"
        )
    _refuse_unlike(settings)
    short_side, max_side = _sides(settings)
    if settings.get("do_normalize", True):
        defaults = Preprocessing()
        mean = settings.get("image_mean") or list(defaults.mean)
        std = settings.get("image_std") or list(defaults.std)
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    try:
        preprocessing = from_dict(
            # A short side above the limit of the long side is never reached: the limit alone decides, as with ours.
            Preprocessing,
            {"short_side": min(short_side, max_side), "max_side": max_side, "mean": mean, "std": std},
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return preprocessing, sorted(set(settings) - {*_IGNORED.split(), *_READ.split()})


def processor_settings(preprocessing: Preprocessing, processor: str) -> dict[str, Any]:
    """Content of transformers' preprocessor_config.json for this preprocessing.

    Args:
        preprocessing: the preprocessing.
        processor: class of their image processor, which also makes detections of predictions.
    """
    return {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.short_side, "longest_edge": preprocessing.max_side},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": True,
        "do_convert_annotations": True,
        "format": "coco_detection",
    }


def _refuse_unlike(settings: Mapping[str, Any]) -> None:
    for name in ("do_resize", "do_rescale"):
        if not settings.get(name, True):
            raise CheckpointError(f"{name} is false; images are always resized and brought to 0..1 here")
    for name in ("do_center_crop", "pad_size"):
        if settings.get(name):
            raise CheckpointError(
                f"{name} is {shown(settings[name])}; images are neither cropped nor padded to a size here"
            )
    factor = settings.get("rescale_factor", 1 / 255)
    if not fits(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError(f"rescale_factor is {shown(factor)}; pixels are divided by 255 here")
    resample = settings.get("resample", _BILINEAR)
    if resample not in (_BILINEAR, None):
        raise CheckpointError(f"resample is {shown(resample)}; images are resized with PIL's bilinear filter (2) here")


def _sides(settings: Mapping[str, Any]) -> tuple[int, int]:
    size = settings.get("size")
    if size is None:
        size = {"shortest_edge": Preprocessing().short_side, "longest_edge": _DEFAULT_MAX_SIDE}
    elif type(size) is int:
        size = {"shortest_edge": size, "longest_edge": settings.get("max_size", _DEFAULT_MAX_SIDE)}
    short_side, max_side = (
        (size.get("shortest_edge"), size.get("longest_edge")) if isinstance(size, dict) else (None, None)
    )
    if not (type(short_side) is int and type(max_side) is int and short_side > 0 and max_side > 0):
        raise CheckpointError(
            f"size is {shown(size)}; it must be given as shortest_edge and longest_edge: shapes are kept here, and no "
            "image is stretched"
        )
    return short_side, max_side
