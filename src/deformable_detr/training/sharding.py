"""Training in which each process keeps a part of every weight: PyTorch's fully_shard (FSDP, arXiv 2304.11277).

Gradients, the optimizer's moments and the average are cut as the weights are. What a forward or backward pass needs is
gathered when its turn comes, by all processes together, and let go of after it.
"""

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
    """Leave each process its part of every parameter of these networks, which must be equal on all of them.

    Buffers stay whole. Where batch norm learns, its statistics are the first process' at every forward pass.

    Args:
        models: changed in place; an optimizer made before does not know the new parameters.
        ranks: the processes.
        device: where the networks are.

    Raises:
        ConfigError: a parameter is a single number without an axis, which cannot be cut.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for model in models:
        scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
        if scalars:
            raise ConfigError(
                f"sharded is true, but {len(scalars)} parameters have no axis to cut, the first {scalars[0]}; "
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
    from torch.distributed.tensor import DTensor  # takes seconds to import

    return isinstance(tensor, DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Shard of a tensor that this process keeps, sharing its memory; all of it where nothing is sharded."""
    return tensor.to_local() if is_cut(tensor) else tensor


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy on the device of `like`, cut as `like` is. All processes have the whole tensor."""
    whole = tensor.to(like.device, copy=True)
    if not is_cut(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def cut_like_those_of(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, each cut as the model's own of this name; those it does not know are left as they are."""
    own = model.state_dict()
    return {
        name: cut_like(tensor, own[name]) if name in own and is_cut(own[name]) else tensor
        for name, tensor in weights.items()
    }


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The same with whole tensors on the processor for those that are cut. All processes call it together.

    Args:
        tensors: the same names in the same order everywhere.
        keep: whether this process wants them; else it helps, holds one at a time, and gets nothing.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if is_cut(whole):
            whole = whole.full_tensor().cpu() if keep else whole.full_tensor()
        if keep:
            found[name] = whole
    return found


@torch.no_grad()
def gather_into(whole: nn.Module, sharded: nn.Module) -> None:
    """Give a network without shards all weights of its sharded twin, on every process; they call it together."""
    into = whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        if is_cut(tensor):
            into[name].copy_(tensor.full_tensor())
        else:
            # What batch norm learns differs from process to process; all judge what the first one saves.
            into[name].copy_(tensor)
            dist.broadcast(into[name], src=0)


def equally_many(parts: list[Batch], ranks: Ranks) -> list[Batch]:
    """The parts of this process' share of a step, and so many without a sample that all processes have as many."""
    return parts + [stand_in()] * (int(max(ranks.gathered(len(parts)))) - len(parts))


def _before_forward(model: nn.Module, inputs: object) -> None:
    if model.training:
        take_from_first(learnt_statistics(model))


def learnt_statistics(model: nn.Module) -> list[Tensor]:
    """Mean, variance and counter of every batch norm that learns."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def take_from_first(tensors: list[Tensor]) -> None:
    """Make these tensors what they are on the first process, by one message; all call it together."""
    if not tensors:
        return
    # float64 holds counters, too.
    message = torch.cat([tensor.flatten().double() for tensor in tensors])
    dist.broadcast(message, src=0)
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
