"""Devices: the one a user named, or the best there is."""

import torch

from deformable_detr.core.errors import BackendError


def choose_device(name: str) -> torch.device:
    """The device a user named: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        BackendError: it is not one of these or is not there.
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
