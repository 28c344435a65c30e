"""Choice of the device: the one that the user names, or the best one that is there."""

import torch

from deformable_detr.core.errors import BackendError


def choose_device(name: str) -> torch.device:
    """Device that the user names: "auto", "cpu", "cuda", or one GPU such as "cuda:1".

    "auto" is the first GPU if there is one, else the CPU.

    Raises:
        BackendError: the name is none of these, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"no such device: {name!r}; there are auto, cpu, cuda, cuda:0, ...") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r} is not supported; there are auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return device
