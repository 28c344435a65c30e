"""What a bug report has to say: versions, hardware, which backend of the operator runs on what, and if it is right."""

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
    """One device of CUDA."""

    device: str
    name: str
    memory_bytes: int
    compute_capability: str
    problem: str | None
    """Why it cannot be used although PyTorch sees it."""


@dataclass(frozen=True, kw_only=True)
class CpuKernel:
    """The compiled kernel for the CPU."""

    path: str | None
    instructions: str | None
    """The copy in use, by its instruction set."""
    copies: dict[str, bool]
    """All that the library holds, and whether this processor can run each."""
    uses_threads: bool
    """Whether it works on PyTorch's threads, or on one."""
    missing: str | None
    """Why there is none."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `diagnose` found."""

    versions: dict[str, str | None]
    platform: str
    processor: str
    num_processors: int
    num_usable_processors: int
    """That this process may use."""
    num_threads: int
    """That PyTorch uses."""
    torch_instructions: str
    """The instruction set of PyTorch's own kernels."""
    gpus: tuple[Gpu, ...]
    cpu_kernel: CpuKernel
    choices: tuple[Choice, ...]
    checks: tuple[Check, ...]
    timings: tuple[Timing, ...]

    @property
    def ok(self) -> bool:
        """Whether every device can be used and every chosen backend computes what it should."""
        return not self.problems()

    def problems(self) -> tuple[str, ...]:
        """What is wrong, one line each. A kernel that is merely missing is none."""
        found = [f"{gpu.device} cannot be used: {gpu.problem}" for gpu in self.gpus if gpu.problem is not None]
        found += [_complaint(check) for check in self.checks if not check.ok]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for `json.dumps`."""
        return {"ok": self.ok, "problems": self.problems(), **asdict(self)}


def diagnose(*, timing: bool = True) -> Diagnosis:
    """Looks at the installation and the hardware, and tries the operator on each device and type.

    Takes a second, and with `timing` another one or two; the first time on a GPU longer, because kernels are compiled
    for it. If the kernel for the CPU is missing, the report says so instead of the warning that usually does.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=cpu.COST)
        kernel = _cpu_kernel()
    gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count()))
    devices = ["cpu", *(gpu.device for gpu in gpus if gpu.problem is None)]
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in the middle of
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
