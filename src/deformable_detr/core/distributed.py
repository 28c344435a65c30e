"""Processes that train together: who this one is, what they tell each other, and how they are started on one machine.

Built on torchrun and torch.distributed: `torchrun` sets the environment that `joined` reads, on one node or on many.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from deformable_detr.core.errors import ConfigError, TrainingError, first_line

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: evaluating and saving takes some of them longer."""
_LAST_SECONDS = "600"
"""How long torchrun lets a process that was told to stop finish its step and save; 30 seconds by itself."""
_WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. `ALONE` is the usual case, and then nothing here costs anything."""

    rank: int = 0
    """0 for the one that speaks and writes."""
    size: int = 1
    """How many there are on all nodes."""
    local_rank: int = 0
    """This one's number on its node, and that of its GPU."""
    together: bool = False
    """Whether there is a process group; also with one process, where torchrun started it."""

    is_first: bool = field(init=False, repr=False, compare=False)
    """Whether it is the one that speaks and writes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_first", self.rank == 0)

    def device(self, name: str) -> str:
        """What "auto" and "cuda" mean for this process: a GPU of its own."""
        if not self.together or name not in ("auto", "cuda"):
            return name
        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{self.local_rank}"

    def share_of(self, batch: Sequence[Value]) -> Sequence[Value]:
        """This process' part of a batch: equal parts, the first ones one larger where it does not divide."""
        part, rest = divmod(len(batch), self.size)
        start = self.rank * part + min(self.rank, rest)
        return batch[start : start + part + (self.rank < rest)]

    def total(self, *numbers: float | int) -> list[float]:
        """Each number summed over all processes, exactly the same on each."""
        if not self.together:
            return [float(number) for number in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def gathered(self, mine: Value) -> list[Value]:
        """What each process has, by rank, on all of them. Any value that can be pickled."""
        if not self.together:
            return [mine]
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, mine)
        return values  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """What the first process has, on all of them."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process through the block before the others: what is wrong with it is then said once."""
        if self.together and not self.is_first:
            try:
                dist.barrier()
            except RuntimeError:
                sys.exit(1)  # the first one has failed and said why
        yield
        if self.together and self.is_first:
            dist.barrier()


ALONE = Ranks()


def started_by_torchrun() -> bool:
    """Whether the environment says that this process is one of several."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def check_started(devices: int) -> None:
    """Refuse another number of processes than this one is told that it is one of.

    Raises:
        ConfigError: both numbers.
    """
    if os.environ["WORLD_SIZE"] != str(devices):
        raise ConfigError(
            f"--devices is {devices}, but WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment says that torchrun "
            "has started this process already; leave one of them out"
        )


def is_first() -> bool:
    """Whether this process is the one that speaks; known before `joined` and after it."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes if torchrun started this one, and part from them at the end; else `ALONE`.

    Args:
        device: as for `train`; GPUs talk through NCCL, processors through gloo.

    Raises:
        ConfigError: the environment is torchrun's only in part.
        TrainingError: the others cannot be reached.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    present = [name for name in _WANTED if name in os.environ]
    if len(present) < len(_WANTED):
        missing = ", ".join(name for name in _WANTED if name not in present)
        raise ConfigError(f"WORLD_SIZE is set, but not {missing}; start several processes with torchrun or --devices")
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in _WANTED[:3])
    except ValueError as error:
        given = ", ".join(f"{name}={os.environ[name]!r}" for name in _WANTED[:3])
        raise ConfigError(f"{given} in the environment: each must be a number, as torchrun sets them") from error
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}; "
            "start as many processes as there are GPUs, or use --device cpu"
        )
    try:
        # Small messages go between processors either way: only gradients are large.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"process {rank} of {size} cannot reach the others: {first_line(error)}") from error
    if on_gpu:
        torch.cuda.set_device(local_rank)
    try:
        yield Ranks(rank, size, local_rank, together=True)
    finally:
        dist.destroy_process_group()


def start(devices: int, arguments: Sequence[str]) -> int:
    """Run `ddetr` with these arguments in so many processes on this machine, by torchrun; returns the exit code.

    Each gets its share of the processor's cores. When one fails the others are stopped, and its exit code is returned.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The failing process has said what is wrong, in one line.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _LAST_SECONDS)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=f"ddetr-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    command = [sys.executable, "-m", "deformable_detr.cli", *arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException as stopped:  # it has passed the signal on, and waited
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0
