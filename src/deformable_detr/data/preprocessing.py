"""Preprocessing: from a picture to the network's input, the same in training, evaluation and prediction."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.geometry import (
    resized_wh,
)
from deformable_detr.data.augmentation.settings import _check_sides


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input outside training. Checkpoints carry it, so weights and input agree."""

    short_side: int = 800
    max_side: int = 1333
    """No side becomes longer than this, even if the short side then misses `short_side`."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check_sides("preprocessing", (self.short_side,), self.max_side)
        if not all(isfinite(value) for value in self.mean):
            raise ConfigError(f"preprocessing.mean is {self.mean}; it needs three finite numbers")
        if not all(isfinite(value) and value > 0 for value in self.std):
            raise ConfigError(f"preprocessing.std is {self.std}; it needs three numbers above 0")


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """The image at its present size as numbers: 0..1, minus the mean, divided by the standard deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return pixels.sub_(mean).div_(std)


def to_model_input(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """An RGB image of any size, resized as for evaluation and normalised."""
    width, height = resized_wh(image.size, preprocessing.short_side, preprocessing.max_side)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return normalise(image, preprocessing)


def to_picture(image: Float[Tensor, "3 height width"], preprocessing: Preprocessing) -> Image.Image:
    """What `normalise` was given."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = (image * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
