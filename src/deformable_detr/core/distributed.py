"""Distributed training: the rank of this process, communication, and the start of several on one machine.

Built on torchrun and torch.distributed: `torchrun` sets the environment that `joined` reads, on one node or on many.
"""

import logging
import os
import signal
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
"""Longest time that a process waits for the others: evaluating and saving takes some of them longer."""
_LAST_SECONDS = "600"
"""Seconds that torchrun gives a stopped process to finish its step and save; its own default is 30."""
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
_WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among those that train together; `ALONE` is the usual case and costs nothing."""

    rank: int = 0
    """Number of this process among all, from 0; process 0 writes the files and shows the progress."""
    size: int = 1
    """Number of processes on all nodes."""
    local_rank: int = 0
    """Number of this process on its node, from 0, and of its GPU there."""
    together: bool = False
    """Whether there is a process group; also true for a single process that torchrun started."""

    is_first: bool = field(init=False, repr=False, compare=False)
    """Whether this process is the one that writes the files and shows the progress."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_first", self.rank == 0)

    def device(self, name: str) -> str:
        """Device of this process: "auto" and "cuda" stand for a GPU of its own."""
        if not self.together or name not in ("auto", "cuda"):
            return name
        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{self.local_rank}"

    def share_of(self, batch: Sequence[Value]) -> Sequence[Value]:
        """Part of a batch for this process: equal parts, the first ones larger by one where it does not divide."""
        part, rest = divmod(len(batch), self.size)
        start = self.rank * part + min(self.rank, rest)
        return batch[start : start + part + (self.rank < rest)]

    def total(self, *numbers: float | int) -> list[float]:
        """Sum of each number over all processes, exactly the same on each."""
        if not self.together:
            return [float(number) for number in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def largest(self, number: int) -> int:
        """Largest of a number over all processes, on each of them."""
        if not self.together:
            return number
        most = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def gathered(self, mine: Value) -> list[Value]:
        """Values of all processes, by rank, on each of them; any value that can be pickled."""
        if not self.together:
            return [mine]
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, mine)
        return values  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """Value of the first process, on each of them."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Context that the first process passes before the others, so that an error in it is shown once."""
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
    """Check that `--devices` agrees with the number of processes that the environment names.

    Raises:
        ConfigError: the two differ; the message has both numbers.
    """
    if os.environ["WORLD_SIZE"] != str(devices):
        raise ConfigError(
            f"--devices is {devices}, but WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment says that torchrun "
            "has started this process already; leave one of them out"
        )


def is_first() -> bool:
    """Whether this process is the one that shows the progress; known before `joined` and after it."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Context in which this process belongs to a process group, if torchrun started it; else `ALONE`.

    Args:
        device: as for `train`; GPUs communicate through NCCL, CPUs through gloo.

    Raises:
        ConfigError: the environment lacks some of torchrun's variables, or this process has no GPU.
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
        # Small messages go through gloo in any case: only gradients are large.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"process {rank} of {size} cannot reach the others: {first_line(error)}") from error
    if on_gpu:
        torch.cuda.set_device(local_rank)
    try:
        yield Ranks(rank, size, local_rank, together=True)
    finally:
        dist.destroy_process_group()


def _is_heeded(name: str) -> bool:
    number = getattr(signal, name, None)
    return number is not None and signal.getsignal(number) is not signal.SIG_IGN


def start(devices: int, arguments: Sequence[str]) -> int:
    """Run `ddetr` with these arguments in several processes on this machine, by torchrun.

    Each process gets its share of the CPU cores. When one fails, the others are stopped.

    Args:
        devices: number of processes.
        arguments: of the command line, without `ddetr`.

    Returns:
        The exit code: of the process that failed first, else 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Silenced, because the failing process has already said in one line what is wrong.
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
        # A signal that is ignored here, as SIGHUP is under nohup, stays ignored.
        signals_to_handle=",".join(name for name in _PASSED_ON if _is_heeded(name)),
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
