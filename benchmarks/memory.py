"""Peak memory of a call, beyond the memory that was in use before it."""

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_extra(call: Callable[[], object], device: str) -> tuple[int, str]:
    """Peak memory of a call in bytes, and the name of the method that measured it.

    On the CPU the result is valid only in a new process, because memory that an earlier call has freed may still belong
    to the process and is not counted again. On Linux, the kernel's peak of resident memory is reset before the call and
    read after it, so that no short peak is missed. On other systems, it is the growth of the peak of the process.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "torch.cuda.max_memory_allocated"
    if _reset_peak():
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before), "VmHWM"
    before = _largest_resident()
    call()
    return _largest_resident() - before, "ru_maxrss"


def peak_resident() -> int:
    """Peak resident memory of this process in bytes, since the last `peak_extra` on the CPU or since its start."""
    return _status("VmHWM") if _STATUS.exists() else _largest_resident()


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} does not say {name}")


def _largest_resident() -> int:
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo
