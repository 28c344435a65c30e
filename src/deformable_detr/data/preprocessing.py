"""Preprocessing of images to the network's input, the same in training, evaluation and prediction."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.geometry import (
    resized_wh,
)
from deformable_detr.data.augmentation.settings import check_sides

_LARGEST_MEAN = 1000.0
_STD = (1e-4, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Settings of the preprocessing: size and normalisation. Checkpoints carry them, so weights and input agree."""

    short_side: int = 800
    """Length in pixels that the shorter side is resized to, outside training."""
    max_side: int = 1333
    """Longest side in pixels, at most 20,000; it is kept even if the shorter side then stays below `short_side`."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, for values in 0..1; by default that of ImageNet. Each in -1000..1000."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, for values in 0..1; by default that of ImageNet. Each in
    0.0001..1000."""

    def __post_init__(self) -> None:
        check_sides("preprocessing", (self.short_side,), self.max_side)
        # A few zeros more and float32 overflows in the network, which then finds nothing.
        if not all(abs(value) <= _LARGEST_MEAN for value in self.mean):
            raise ConfigError(
                f"preprocessing.mean is {self.mean}; it needs three finite numbers, at most {_LARGEST_MEAN:g} from 0"
            )
        if not all(_STD[0] <= value <= _STD[1] for value in self.std):
            raise ConfigError(
                f"preprocessing.std is {self.std}; it needs three numbers above 0, in {_STD[0]:g}..{_STD[1]:g}"
            )


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """Image as numbers at its present size: 0..1, minus the mean, divided by the standard deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return pixels.sub_(mean).div_(std)


def to_model_input(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """Network input of an RGB image of any size: resized as for evaluation and normalised."""
    width, height = resized_wh(image.size, preprocessing.short_side, preprocessing.max_side)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return normalise(image, preprocessing)


def to_picture(image: Float[Tensor, "3 height width"], preprocessing: Preprocessing) -> Image.Image:
    """Image from normalised numbers, the inverse of `normalise`."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = (image * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
