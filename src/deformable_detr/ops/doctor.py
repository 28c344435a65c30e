"""Diagnosis for bug reports: versions, hardware, the backend of the operator for each device, and its errors."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deformable_detr.core.errors import first_line
from deformable_detr.core.version import __version__
from deformable_detr.ops import cpu
from deformable_detr.ops import selftest as trial
from deformable_detr.ops.selftest import Check, Choice, Timing

_PACKAGES = ("torchvision", "timm", "triton")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """CUDA device that PyTorch sees."""

    device: str
    """Name in PyTorch, such as "cuda:0"."""
    name: str
    """Name of the product."""
    memory_bytes: int
    """Bytes of its memory."""
    compute_capability: str
    """Compute capability, such as "8.0"."""
    problem: str | None
    """Reason why it cannot be used although PyTorch sees it, or None."""


@dataclass(frozen=True, kw_only=True)
class CpuKernel:
    """Compiled kernel for the CPU."""

    path: str | None
    """Compiled library; None if there is none."""
    instructions: str | None
    """Instruction set of the copy in use; None if there is no kernel."""
    copies: dict[str, bool]
    """Copies that the library holds, each with whether this CPU can run it."""
    uses_threads: bool
    """Whether it works on PyTorch's threads; else on one thread."""
    missing: str | None
    """Reason why there is no kernel, or None."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Report of `diagnose`."""

    versions: dict[str, str | None]
    """Versions of this package, Python, PyTorch, CUDA and others; None where one is not installed."""
    platform: str
    """Operating system and architecture."""
    processor: str
    """Name of the CPU."""
    num_processors: int
    """Number of CPU cores that the system counts."""
    num_usable_processors: int
    """Number of CPU cores that this process may use."""
    num_threads: int
    """Number of threads that PyTorch uses."""
    torch_instructions: str
    """Instruction set of PyTorch's own kernels."""
    gpus: tuple[Gpu, ...]
    """CUDA devices that PyTorch sees."""
    cpu_kernel: CpuKernel
    """Compiled kernel for the CPU."""
    choices: tuple[Choice, ...]
    """Backend that "auto" takes, for each device and type."""
    checks: tuple[Check, ...]
    """Errors of each of these backends."""
    timings: tuple[Timing, ...]
    """Speed in float32 of each backend that passed its check; empty if it was not measured."""

    @property
    def ok(self) -> bool:
        """Whether every device can be used and every chosen backend computes what it should."""
        return not self.problems()

    def problems(self) -> tuple[str, ...]:
        """Problems, one line each. A kernel that is merely missing is no problem."""
        found = [f"{gpu.device} cannot be used: {gpu.problem}" for gpu in self.gpus if gpu.problem is not None]
        found += [_complaint(check) for check in self.checks if not check.ok]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Report as plain values for `json.dumps`."""
        return {"ok": self.ok, "problems": self.problems(), **asdict(self)}


def diagnose(*, timing: bool = True) -> Diagnosis:
    """Diagnosis of the installation and the hardware, with a test of the operator on each device and type.

    It takes a second, and another one or two with `timing`. The first time on a GPU takes longer, because kernels are
    compiled. If the kernel for the CPU is missing, the report says so, and the usual warning is not shown.

    Args:
        timing: also measure the speed of each backend.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=cpu.COST)
        kernel = _cpu_kernel()
    gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count()))
    devices = ["cpu", *(gpu.device for gpu in gpus if gpu.problem is None)]
    with torch.inference_mode(False), torch.enable_grad():  # the caller may have switched gradients off
        choices = tuple(trial.choose(device, dtype) for device in devices for dtype in trial.DTYPES)
        checks = tuple(trial.check(choice) for choice in choices)
        timings = [
            one
            for choice, check in zip(choices, checks, strict=True)
            if timing and check.ok and choice.dtype == trial.TIMED_DTYPE
            for one in trial.timings(choice)
        ]
    return Diagnosis(
        versions=_versions(),
        platform=platform.platform(),
        processor=_processor(),
        num_processors=os.cpu_count() or 1,
        num_usable_processors=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        torch_instructions=torch.backends.cpu.get_cpu_capability(),
        gpus=gpus,
        cpu_kernel=kernel,
        choices=choices,
        checks=checks,
        timings=tuple(timings),
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "deformable-detr": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,  # that PyTorch was built for
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    device = f"cuda:{index}"
    try:
        _use(device)
        problem = None
    except RuntimeError as error:
        problem = first_line(error)
    return Gpu(
        device=device,
        name=properties.name,
        memory_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        problem=problem,
    )


def _use(device: str) -> None:
    torch.ones(1, device=device).cpu()


def _cpu_kernel() -> CpuKernel:
    missing = cpu.missing()
    if missing is not None:
        return CpuKernel(path=None, instructions=None, copies={}, uses_threads=False, missing=missing)
    kernel = cpu.kernel()
    return CpuKernel(
        path=str(kernel.path),
        instructions=kernel.instructions,
        copies=cpu.copies(ctypes.CDLL(str(kernel.path))),
        uses_threads=kernel.parallel_for != 0,
        missing=None,
    )


def _complaint(check: Check) -> str:
    where = f"backend {check.backend} on {check.device} with {check.dtype}"
    if check.problem is not None:
        return f"{where}: {check.problem}"
    return (
        f"{where} errs by {check.result_error:.1e} in the result and {check.gradient_error:.1e} in the gradient; "
        f"allowed is {check.allowed:.1e}"
    )
