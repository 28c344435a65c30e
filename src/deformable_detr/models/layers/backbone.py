"""Backbone: images to feature maps, with any convolutional network of timm."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.errors import CheckpointError, ConfigError, first_line, listed
from deformable_detr.core.short_text import shown
from deformable_detr.core.torch_files import check_numbers, read_tensors, type_name
from deformable_detr.models.layers.deformable_convolution import NEW_WEIGHTS, make_deformable
from deformable_detr.models.layers.frozen_norm import fold_frozen_norms

log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """Backbone that gives its `num_maps` coarsest feature maps, for instance of strides 8, 16 and 32 for three.

    Args:
        name: timm's name of the network, for instance "resnet50".
        num_maps: number of maps, counted from the coarsest.
        dilation: the last stage keeps the stride of the stage before and dilates its convolutions instead (DC5).
        frozen_stages: number of stages that are not trained, counted from the image as timm counts them: the stem and
            layer1 of a ResNet are the first 2 (strides 2 and 4).
        frozen_batch_norm: batch norm keeps statistics, scale and shift, as in the official code.
        deformable_stages: number of stages, counted from the coarsest, whose 3x3 convolutions are modulated deformable
            ones; for ResNet and ResNeXt only. They start as the plain ones.

    Raises:
        ConfigError: timm does not know the name, the network cannot give these maps, or it cannot have deformable
            convolutions in these stages.
    """

    def __init__(
        self,
        name: str,
        *,
        num_maps: int,
        dilation: bool,
        frozen_stages: int,
        frozen_batch_norm: bool,
        deformable_stages: int = 0,
    ) -> None:
        # timm takes seconds to import: here, when settings and weights have been found to be good.
        from timm.layers.norm_act import freeze_batch_norm_2d

        super().__init__()
        _check_name(name)
        full: Any = _create(name, dilation, None)
        strides = full.feature_info.reduction()
        if len(strides) < num_maps:
            raise ConfigError(f"backbone {name} has {len(strides)} feature maps, num_levels asks for {num_maps}")
        body: Any = _create(name, dilation, tuple(range(len(strides) - num_maps, len(strides))))
        self.strides: list[int] = body.feature_info.reduction()
        self.num_channels: list[int] = body.feature_info.channels()
        _try_out(body, name, self.num_channels)
        self._name = name
        self.body = freeze_batch_norm_2d(body) if frozen_batch_norm else body
        stages = [info["module"] for info in full.feature_info.info]
        if deformable_stages:
            _check_deformable(deformable_stages, frozen_stages, len(stages), name)
            make_deformable(self.body, stages[-deformable_stages:], name)
        fold_frozen_norms(self.body)
        _freeze_up_to(self.body, stages, frozen_stages, name)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Feature maps of normalised images, finest first."""
        if images.device.type == "cpu":
            # Convolutions on the CPU use this layout internally; batch norm and pooling are faster in it, too.
            images = images.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = self.body(images)
        return maps

    def stages(self) -> list[nn.Module]:
        """Stages with parts of their own, each called once for a batch; none if the network is not made of stages."""
        body = self.body
        whole = body.values() if isinstance(body, nn.ModuleDict) else ()
        return [stage for stage in whole if any(True for _ in stage.children())]

    def load_weights(self, source: str) -> None:
        """Load pre-trained weights.

        Args:
            source: "hub" for those of timm, which are downloaded once; else a .safetensors or .pth file in the layout
                of timm or torchvision, whose classifier is not used.

        Raises:
            CheckpointError: the hub cannot be reached, or the file does not hold weights of this network, or weights
                that are not finite.
        """
        state = _from_hub(self._name) if source == "hub" else _from_file(Path(source))
        # timm writes "stages_0" where the plain network has "stages.0".
        by_name = {key.replace(".", "_"): tensor for key, tensor in state.items()}
        loaded, missing, wrong = {}, [], []
        for key, own in self.body.state_dict().items():
            tensor = by_name.get(key.replace(".", "_"))
            if tensor is None:
                # The classifier was trained with plain convolutions: what makes them deformable stays at its start.
                if not (key.endswith("num_batches_tracked") or NEW_WEIGHTS in key):
                    missing.append(key)
            elif tensor.shape != own.shape:
                wrong.append(f"{key} is {tuple(tensor.shape)} there and {tuple(own.shape)} here")
            elif own.is_floating_point() != tensor.is_floating_point():
                wrong.append(f"{key} is {type_name(tensor)} there and {type_name(own)} here")
            else:
                loaded[key] = tensor
        if missing or wrong:
            problems = [f"{len(missing)} parameters missing, first {first}" for first in missing[:1]] + wrong[:1]
            raise CheckpointError(f"{source} does not hold weights of {self._name}: {'; '.join(problems)}")
        check_numbers(loaded, source)
        self.body.load_state_dict(loaded, strict=False)
        log.info("backbone %s: %d tensors from %s", self._name, len(loaded), source)


def _check_name(name: str) -> None:
    """Refuse everything but the names that timm itself knows; with others it would go to the hub or read folders."""
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(name):
        near = timm.list_models(f"*{architecture[:6]}*")[:5] if architecture.isidentifier() else []
        hint = f"; did you mean one of {', '.join(near)}?" if near else ""
        raise ConfigError(f"timm knows no backbone {shown(name)}{hint}")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        hint = f"; there are {listed(known)}" if known else ""
        raise ConfigError(f"timm knows {architecture}, but no weights {shown(name)} for it{hint}") from error


def _create(name: str, dilation: bool, out_indices: tuple[int, ...] | None) -> nn.Module:
    import timm

    options: dict[str, Any] = {"features_only": True, "pretrained": False}
    if dilation:
        options["output_stride"] = 16
    if out_indices is not None:
        options["out_indices"] = out_indices
    try:
        return timm.create_model(name, **options)
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        AttributeError,
        ValueError,
        AssertionError,
    ) as error:
        how = " with dilation" if dilation else ""
        raise ConfigError(f"backbone {name} cannot be used for its feature maps{how}: {first_line(error)}") from error


def _try_out(body: nn.Module, name: str, num_channels: list[int]) -> None:
    """Refuse networks that take images of one size only or give no feature maps, as most transformers do."""
    body.eval()
    try:
        with torch.no_grad():
            maps = body(torch.zeros(1, 3, 64, 96))
        given = [one.shape[1] if one.dim() == 4 else None for one in maps]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"backbone {name} cannot take images of any size ({first_line(error)}); choose a convolutional network"
        ) from error
    if given != num_channels:
        raise ConfigError(f"backbone {name} does not give maps with channels first; choose a convolutional network")
    body.train()


def _check_deformable(deformable_stages: int, frozen_stages: int, num_stages: int, name: str) -> None:
    if deformable_stages > num_stages - 1:  # the first is the stem, which is no stage of blocks
        raise ConfigError(
            f"deformable_stages is {deformable_stages}, but backbone {name} has {num_stages - 1} stages behind its stem"
        )
    if deformable_stages + frozen_stages > num_stages:
        raise ConfigError(
            f"deformable_stages is {deformable_stages} and frozen_stages {frozen_stages}, but backbone {name} has "
            f"{num_stages} stages: what is frozen cannot learn to move; set deformable_stages="
            f"{max(0, num_stages - frozen_stages)} or frozen_stages={num_stages - deformable_stages}"
        )


def _freeze_up_to(body: nn.Module, stages: list[str], count: int, name: str) -> None:
    if count > len(stages):
        raise ConfigError(f"frozen_stages is {count}, but backbone {name} has {len(stages)} stages")
    if count == 0:
        return
    last = stages[count - 1].replace(".", "_")
    reached = False
    for path, module in body.named_modules():
        inside = path.replace(".", "_") == last or path.replace(".", "_").startswith(last + "_")
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    assert reached, f"stage {last} of {name} not found"


def _from_hub(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"pre-trained weights of {name} cannot be had from timm's hub ({first_line(error)}); name a local "
            "file with --backbone-weights PATH, or --backbone-weights none to start from random weights"
        ) from error


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no such file of backbone weights: {path}")
    return {re.sub(r"^(module|model|backbone)\.", "", key): tensor for key, tensor in read_tensors(path).items()}
