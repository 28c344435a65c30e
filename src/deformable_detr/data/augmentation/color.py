"""Colour augmentation: brightness, contrast, saturation and hue; boxes stay as they are."""

import torch

from deformable_detr.data.augmentation.geometry import Example
from deformable_detr.data.rng import happens, uniform


def color_jitter(example: Example, strength: float, generator: torch.Generator) -> Example:
    """Random brightness, contrast, saturation (by up to 40 % times `strength`) and hue (by up to 5 % of the circle)."""
    from torchvision.transforms.v2 import functional as tv  # takes seconds to import

    brightness, contrast, saturation, hue = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    spread = 0.4 * strength
    image = tv.adjust_brightness(example.image, 1 + spread * brightness)
    image = tv.adjust_contrast(image, 1 + spread * contrast)
    image = tv.adjust_saturation(image, 1 + spread * saturation)
    return example._replace(image=tv.adjust_hue(image, 0.05 * strength * hue))


def distort(example: Example, probability: float, generator: torch.Generator) -> Example:
    """Photometric distortion of SSD (arXiv 1512.02325): four changes of colour, each with the given probability.

    Brightness times 0.875 to 1.125, contrast and saturation times 0.5 to 1.5, hue up to 5 % of the circle. Contrast
    comes before or after saturation and hue, at random. Unlike SSD, channels are not exchanged: blood stays red.
    """
    from torchvision.transforms.v2 import functional as tv

    image = example.image
    if happens(probability, generator):
        image = tv.adjust_brightness(image, uniform(0.875, 1.125, generator))
    contrast = uniform(0.5, 1.5, generator) if happens(probability, generator) else None
    contrast_first = happens(0.5, generator)
    if contrast is not None and contrast_first:
        image = tv.adjust_contrast(image, contrast)
    if happens(probability, generator):
        image = tv.adjust_saturation(image, uniform(0.5, 1.5, generator))
    if happens(probability, generator):
        image = tv.adjust_hue(image, uniform(-0.05, 0.05, generator))
    if contrast is not None and not contrast_first:
        image = tv.adjust_contrast(image, contrast)
    return example._replace(image=image)
