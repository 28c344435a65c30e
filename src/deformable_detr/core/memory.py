"""Memory that is free, and a check before the work that what is asked for can fit at all."""

from pathlib import Path

import torch

from deformable_detr.core.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None on a system that does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        free = kernel_bytes(_MEMINFO, "MemAvailable")
    except (OSError, LookupError):
        return None
    # A container may be allowed less than the machine has.
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except OSError:
        return free
    # Cached files count as used, but the kernel drops them as soon as memory is needed.
    read_files = int(dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", 0))
    return free if most == "max" else min(free, int(most) - used + read_files)


def kernel_bytes(file: Path, name: str) -> int:
    """Value of a line such as "VmRSS: 12 kB" of a file of the kernel, in bytes.

    Raises:
        LookupError: the file has no such line.
    """
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{file} does not say {name}")


def check_fits(num_pixels: int, bytes_per_pixel: int, device: torch.device, what: str, way_out: str) -> None:
    """Check that images can be computed with at all, before they take the machine's memory.

    Args:
        num_pixels: pixels of all images that are in memory together.
        bytes_per_pixel: memory that even a small network needs for each of them; a lower bound.
        device: device that computes.
        what: words for the images, such as "2 images of 640 x 480 pixels".
        way_out: what the user can do.

    Raises:
        ConfigError: they need more memory than is free.
    """
    needed, free = num_pixels * bytes_per_pixel, free_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} need more than {needed / 2**30:.1f} GiB of memory, and {max(free, 0) / 2**30:.1f} GiB are free; "
            f"{way_out}"
        )
