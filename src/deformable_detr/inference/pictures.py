"""Images for the detector: files, Pillow images, arrays and tensors, all read as a file of the same image."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deformable_detr.data.images import displayed, load_image

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""One image: the path of a file, a Pillow image, a numpy array or a torch tensor.

An array is (height, width) gray or (height, width, channels) with 1 to 4 channels: gray, gray and alpha, RGB, or RGB
and alpha; in uint8 or uint16. A tensor is (3, height, width) RGB or (height, width) gray, in uint8 or as numbers in
0..1.
"""


def picture_of(image: ImageLike) -> Image.Image:
    """Pillow image in RGB with eight bits per channel, turned as it is displayed.

    Args:
        image: one image of any kind.

    Raises:
        DataError: the file cannot be read.
        ValueError: the array or the tensor is not one image, or `image` is of another type.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return displayed(image)
    if isinstance(image, Tensor):
        return _from_array(_array_of(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise ValueError(f"an image is a path, a Pillow image, a numpy array or a torch tensor, not {type(image).__name__}")


def _array_of(tensor: Tensor) -> np.ndarray:
    """Pixels of a tensor as an array in uint8, channels last; numbers in 0..1 are rounded to the 256 of a file."""
    shape = tuple(tensor.shape)
    if tensor.ndim != 2 and (tensor.ndim != 3 or shape[0] != 3):
        raise ValueError(
            f"a tensor must be (3, height, width) RGB or (height, width) gray, as torchvision has them, not {shape} in "
            f"{tensor.dtype}{_hint(shape, channels_first=True)}"
        )
    values = tensor.detach().cpu()
    if values.is_floating_point():
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"a tensor of {tensor.dtype} must hold numbers in 0..1, not {low:g} to {high:g}; leave normalising to "
                "the detector, and give pixels of 0..255 as uint8"
            )
        values = values.float().mul(255).round().byte()
    elif values.dtype != torch.uint8:
        raise ValueError(
            f"a tensor must be uint8, or numbers in 0..1 of a floating-point type, not {shape} in {tensor.dtype}"
        )
    return (values if values.ndim == 2 else values.permute(1, 2, 0)).numpy()


def _from_array(array: np.ndarray) -> Image.Image:
    shape, dtype = array.shape, array.dtype
    if 0 in shape:
        raise ValueError(f"an image needs at least one pixel; this one is {shape}")
    is_image = array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 2, 3, 4))
    if not is_image or dtype.kind != "u" or dtype.itemsize > 2:
        raise ValueError(
            "an array must be (height, width) gray or (height, width, channels) with 1 to 4 channels, in uint8 or "
            f"uint16, not {shape} in {dtype}{_hint(shape, channels_first=False)}"
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if dtype.itemsize == 2:
        # As Pillow reads files: gray keeps its 16 bits and is scaled later, colours keep their upper eight bits.
        array = array.astype(np.uint16) if array.ndim == 2 else (array >> 8).astype(np.uint8)
    return displayed(Image.fromarray(array))


def _hint(shape: tuple[int, ...], *, channels_first: bool) -> str:
    if len(shape) == 4:
        return "; several images are passed as a list, for instance list(images)"
    if len(shape) == 3 and channels_first and shape[2] in (3, 4):
        return "; permute(2, 0, 1) puts the channels first"
    if len(shape) == 3 and not channels_first and shape[0] in (1, 3, 4) and shape[2] > 4:
        return "; transpose(1, 2, 0) puts the channels last"
    return ""
