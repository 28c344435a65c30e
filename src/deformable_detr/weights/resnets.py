"""ResNets of torchvision, which the published codes take as backbones, recognised by the shapes of their tensors."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from deformable_detr.core.errors import CheckpointError

BODY = "backbone.0.body."
"""Prefix of the backbone's parameters in the files of the published codes."""
MIDDLE = f"{BODY}layer1.0.conv2.weight"
"""Name of the tensor that tells networks of the same number of blocks apart."""
TAG = ".tv_in1k"
"""Suffix of timm's names for torchvision's weights."""
# By blocks per layer, the shape of a block's second convolution in layer1, and whether blocks have a third one.
_NAMES: dict[tuple[tuple[int, ...], tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), (64, 64), False): "resnet18",
    ((3, 4, 6, 3), (64, 64), False): "resnet34",
    ((3, 4, 6, 3), (64, 64), True): "resnet50",
    ((3, 4, 23, 3), (64, 64), True): "resnet101",
    ((3, 8, 36, 3), (64, 64), True): "resnet152",
    ((3, 4, 6, 3), (128, 128), True): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128), True): "wide_resnet101_2",
    ((3, 4, 6, 3), (128, 4), True): "resnext50_32x4d",
    ((3, 4, 23, 3), (256, 8), True): "resnext101_32x8d",
}
ALL = tuple(_NAMES.values())
"""Names of all of them."""
OF_BOTTLENECKS = tuple(name for (_, _, bottleneck), name in _NAMES.items() if bottleneck)
"""Names of those whose last map has 2048 channels."""
_BLOCK = re.compile(rf"{re.escape(BODY)}layer([1-4])\.(\d+)\.conv2\.weight")


def resnet_of(official: Mapping[str, Tensor], known: Collection[str]) -> str:
    """Name in timm of the backbone in a published file, without a tag.

    Args:
        official: tensors by official names; `MIDDLE` is among them.
        known: names that the published code takes.

    Raises:
        CheckpointError: it is none of the known ones.
    """
    layers = [match[1] for name in official if (match := _BLOCK.fullmatch(name))]
    blocks = tuple(layers.count(layer) for layer in "1234")
    middle = tuple(official[MIDDLE].shape[:2])
    name = _NAMES.get((blocks, middle, f"{BODY}layer1.0.conv3.weight" in official))
    if name is None or name not in known:
        raise CheckpointError(
            f"its backbone has {blocks} blocks, {middle[0]} channels wide; known are {', '.join(known)}"
        )
    return name
