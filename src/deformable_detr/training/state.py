"""What a run needs to go on at the very bit, as named tensors: the optimizer's moments, and where chance stands."""

from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.core.errors import CheckpointError
from deformable_detr.training.sharding import cut_like
from deformable_detr.weights.checkpoint import Checkpoint

TRAINED = "trained/"
"""Before the names of weights that take the steps, in a checkpoint whose own weights are their average."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def trained_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The weights that take the steps; the file's own are their average if there is one.

    Args:
        saved: a checkpoint to go on from, read with `training=True`.
    """
    return below(TRAINED, saved.training.tensors if saved.training else {}) or saved.weights


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of every parameter that has had a gradient, by "moment/parameter"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{moment}/{names[parameter]}": state[moment]
        for parameter, state in optimizer.state.items()
        for moment in _MOMENTS
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: some are missing or of another shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            found: dict[str, Any] = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
            if found["step"] is None:
                continue  # a parameter that had no gradient yet
            if any(one is None for one in found.values()) or found["exp_avg"].shape != parameter.shape:
                raise CheckpointError(f"the optimizer's state of {name} is missing or of another shape")
            # Fused AdamW keeps all of it beside the parameter. Copies, because what was loaded may still lie in the
            # file, and a file may go away.
            step = found.pop("step").to(parameter.device, copy=True)
            optimizer.state[parameter] = {"step": step} | {
                moment: cut_like(one, parameter) for moment, one in found.items()
            }


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where this process' random numbers stand: dropout's are the only ones that a run draws as it goes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `generator_states` gave; what is missing stays as it is."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
