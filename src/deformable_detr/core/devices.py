"""Choice of the device: the one that the user names, or the best one that is there; and what a CPU is good at."""

import torch

from deformable_detr.core.errors import BackendError

# Names in `torch.cpu.get_capabilities`. A CPU with none of these instructions computes bfloat16 by way of float32.
_BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, and oneDNN may use them, as far as PyTorch can tell.

    2.11 cannot tell the instructions, and then only oneDNN is asked, which also takes bfloat16 without them.
    """
    # oneDNN can be held to older instructions by the environment (ONEDNN_MAX_CPU_ISA).
    may_use = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if may_use is not None and not may_use():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)


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
