"""Modulated deformable convolution (DCNv2, Zhu et al., arXiv 1811.11168), in place of convolutions of a ResNet."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError

NEW_WEIGHTS = "offsets_and_mask"
"""Word in the names of those weights that the plain convolution does not have."""
_FAMILY = "resnet"  # timm's module of ResNet, ResNeXt, SE-ResNet and their kin


class DeformableConvolution(nn.Module):
    """Modulated deformable convolution that starts as a given plain one.

    A second convolution predicts, for every output position and every cell of the kernel, how far the cell is moved (y
    and x, in pixels of the input) and how much it counts: 2 * sigmoid, in 0..2. That convolution starts at zero, so
    that nothing moves and everything counts 1. The paper of the layer has a sigmoid, which would halve what a
    pretrained network computes; the factor 2 is here to avoid that.

    Args:
        plain: convolution to start from, with a padding of zeros; its weight and bias are taken over, names included.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        assert plain.padding_mode == "zeros"
        self.weight, self.bias = plain.weight, plain.bias
        self.stride, self.padding, self.dilation = _pair(plain.stride), _pair(plain.padding), _pair(plain.dilation)
        height, width = plain.kernel_size
        self.offsets_and_mask = nn.Conv2d(
            plain.in_channels,
            3 * height * width,
            (height, width),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            device=plain.weight.device,
            dtype=plain.weight.dtype,
        )
        nn.init.zeros_(self.offsets_and_mask.weight)
        assert self.offsets_and_mask.bias is not None
        nn.init.zeros_(self.offsets_and_mask.bias)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Convolved features; coordinates and sums are in float32 at least, also where autocast is on."""
        from torchvision.ops import deform_conv2d  # takes seconds to import

        layout = torch.channels_last if features.is_contiguous(memory_format=torch.channels_last) else None
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            wide, predict = features.to(dtype), self.offsets_and_mask
            assert predict.bias is not None
            moves = F.conv2d(
                wide,
                predict.weight.to(dtype),
                predict.bias.to(dtype),
                self.stride,
                self.padding,
                self.dilation,
            )
            cells = moves.shape[1] // 3
            convolved: Tensor = deform_conv2d(
                wide.contiguous(),
                moves[:, : 2 * cells].contiguous(),
                self.weight.to(dtype),
                None if self.bias is None else self.bias.to(dtype),
                self.stride,
                self.padding,
                self.dilation,
                2 * moves[:, 2 * cells :].sigmoid(),
            )
        convolved = convolved.to(features.dtype)
        return convolved if layout is None else convolved.contiguous(memory_format=layout)


def make_deformable(body: nn.Module, stages: Sequence[str], name: str) -> None:
    """Replace the 3x3 convolutions of the blocks in some stages of a ResNet or ResNeXt by deformable ones.

    Args:
        body: timm's network; it is changed.
        stages: names of the stages' modules in it.
        name: timm's name of the network.

    Raises:
        ConfigError: the network is of another family, or a stage has no such convolution.
    """
    from timm.models import is_model_in_modules  # takes seconds to import

    if not is_model_in_modules(name.split(".")[0], [_FAMILY]):
        raise ConfigError(
            f"deformable_stages is {len(stages)}, but backbone {name} is no ResNet or ResNeXt of timm; choose one, "
            "such as resnext101_64x4d.tv_in1k, or set deformable_stages=0"
        )
    for stage in stages:
        found = {
            path: module
            for path, module in body.named_modules()
            if path.startswith(f"{stage}.") and "downsample" not in path and _is_plain_3x3(module)
        }
        if not found:
            raise ConfigError(
                f"deformable_stages is {len(stages)}, but {stage} of backbone {name} has no 3x3 convolution in its "
                "blocks; choose fewer stages"
            )
        for path, module in found.items():
            assert isinstance(module, nn.Conv2d)
            holder, _, last = path.rpartition(".")
            setattr(body.get_submodule(holder), last, DeformableConvolution(module))


def _is_plain_3x3(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.padding_mode == "zeros"


def _pair(value: tuple[int, ...] | str) -> tuple[int, int]:
    assert not isinstance(value, str)
    first, second = value
    return int(first), int(second)
