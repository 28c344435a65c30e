"""Sharded training: each process keeps a part of every weight, by PyTorch's fully_shard (FSDP, arXiv 2304.11277).

Gradients, moments of the optimizer and averaged weights are sharded as the weights are. The weights that a layer needs
in its forward or backward pass are gathered by all processes together just before, and freed after it.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Batch
from deformable_detr.data.batch import stand_in
from deformable_detr.models import interface_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(models: Sequence[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """Shard the parameters of these networks; before, they must be equal in all processes.

    Buffers stay whole. If batch norm learns, all processes take its statistics from the first process before every
    forward pass.

    Args:
        models: networks, changed in place. An optimizer that exists already does not know the new parameters.
        ranks: the processes that train together.
        device: device of the networks.

    Raises:
        ConfigError: a parameter is a single number without an axis, which cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for model in models:
        scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
        if scalars:
            raise ConfigError(
                f"sharded is true, but {len(scalars)} parameters have no axis to cut, such as {scalars[0]}; "
                "set sharded=false or choose another backbone"
            )
    mesh = init_device_mesh(device.type, (ranks.size,))
    for model in models:
        for part in interface_of(model).gathered_together():
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if learnt_statistics(model):
            model.register_forward_pre_hook(_before_forward)


def is_cut(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process keeps only a part of a tensor."""
    return isinstance(tensor, _sharded_type())


def _sharded_type() -> tuple[type[Tensor], ...]:
    """Type of sharded tensors; none as long as nothing has imported it, which takes seconds."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return (loaded.DTensor,) if loaded is not None else ()


def local_shard(tensor: Tensor) -> Tensor:
    """Part of a tensor that this process keeps, in the same memory; the whole tensor if it is not sharded."""
    return tensor.to_local() if is_cut(tensor) else tensor


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy of a whole tensor on the device of `like`, sharded as `like` is; every process has the whole tensor."""
    whole = tensor.to(like.device, copy=True)
    if not is_cut(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def cut_like_those_of(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, each sharded as the network's tensor of that name; unknown names stay as they are."""
    own = model.state_dict()
    return {
        name: cut_like(tensor, own[name]) if name in own and is_cut(own[name]) else tensor
        for name, tensor in weights.items()
    }


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors for tensors that may be sharded; whole tensors of sharded ones are on the CPU.

    All processes call it together.

    Args:
        tensors: tensors by name, with the same names in the same order in all processes.
        keep: whether this process needs the result. If not, it only takes part, and holds one whole tensor at a time.

    Returns:
        Tensors by name; nothing if `keep` is false.
    """
    found = {}
    sharded = _sharded_type()
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if isinstance(whole, sharded) and is_cut(whole):
            whole = whole.full_tensor().cpu() if keep else whole.full_tensor()
        if keep:
            found[name] = whole
    return found


@torch.no_grad()
def gather_into(whole: nn.Module, sharded: nn.Module) -> None:
    """Copy all weights of a sharded network into an equal network that is not sharded, in every process.

    All processes call it together.
    """
    into = whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        if is_cut(tensor):
            into[name].copy_(tensor.full_tensor())
        else:
            # Statistics of batch norm differ between processes; all evaluate those that the first process saves.
            into[name].copy_(tensor)
            dist.broadcast(into[name], src=0)


def equally_many(parts: list[Batch], ranks: Ranks) -> list[Batch]:
    """Parts of this process' share of a step, filled up with empty parts until all processes have equally many."""
    return parts + [stand_in()] * (int(max(ranks.gathered(len(parts)))) - len(parts))


def _before_forward(model: nn.Module, inputs: object) -> None:
    if model.training:
        take_from_first(learnt_statistics(model))


def learnt_statistics(model: nn.Module) -> list[Tensor]:
    """Statistics (mean, variance, counter) of every batch norm that learns."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def take_from_first(tensors: list[Tensor]) -> None:
    """Overwrite these tensors with those of the first process, in one message; all processes call it together."""
    if not tensors:
        return
    # One type for all of them: float64 holds counters exactly, too.
    message = torch.cat([tensor.flatten().double() for tensor in tensors])
    dist.broadcast(message, src=0)
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
