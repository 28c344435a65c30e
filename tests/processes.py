"""Processes forked from one that has imported everything: nothing of a test's time goes into imports.

`start` is one process, `Group` several of them in the environment that torchrun would give them. Shapes are checked in
them as in the tests themselves. What the command line, the interpreter's start or torchrun add is for tests of their
own, which start a real command.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Self

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])
_PATIENCE_S = 300


def start(function: Callable[..., Any], *arguments: Any, said: Path, environment: Mapping[str, str] = {}) -> "Started":
    """Call the function in a process of its own, which leads a session of its own.

    Args:
        said: file that takes its standard error, and with `.out` added to its name its standard output.
        environment: variables beside those of this process.
    """
    _ensure_server()
    process = _CONTEXT.Process(target=_call, args=(function, arguments, dict(environment), str(said)))
    process.start()
    return Started(process, said)


class Started:
    """A process that has been started; it does not outlive a `with` block."""

    def __init__(self, process: Any, said: Path) -> None:
        self.process = process
        self._said = said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return self._said.read_text(encoding="utf-8") if self._said.exists() else ""

    @property
    def printed(self) -> str:
        """Its standard output so far."""
        return Path(f"{self._said}.out").read_text(encoding="utf-8")

    def wait(self) -> int:
        """Its exit code, negative for a signal that has ended it."""
        self.process.join(_PATIENCE_S)
        code = self.process.exitcode
        assert code is not None, f"still running after {_PATIENCE_S} s: {self.said}"
        return code


class Group:
    """Processes that find each other as those of torchrun do; when one fails, the others are told to stop."""

    def __init__(self, size: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.members = []
        for rank in range(size):
            who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            said = folder / f"said-{rank}.txt"
            self.members.append(start(function, *arguments, said=said, environment=address | who))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.__exit__()

    @property
    def said(self) -> str:
        """Standard error of all of them."""
        return "".join(member.said for member in self.members)

    @property
    def printed(self) -> str:
        """Standard output of all of them."""
        return "".join(member.printed for member in self.members)

    def signal(self, number: int) -> None:
        """Send the signal to all of them."""
        for member in self.members:
            os.kill(member.process.pid, number)

    def wait(self) -> int:
        """0, or the exit code of the first one that has failed."""
        first, until = 0, time.monotonic() + _PATIENCE_S
        while any(member.process.is_alive() for member in self.members):
            assert time.monotonic() < until, f"still running after {_PATIENCE_S} s: {self.said}"
            codes = [member.process.exitcode for member in self.members]
            if not first and any(codes):
                first = next(code for code in codes if code)
                for member in self.members:
                    member.process.terminate()
            time.sleep(0.01)
        return first or next((code for one in self.members if (code := one.process.exitcode)), 0)


def ddetr(arguments: Sequence[object]) -> None:
    """The command with these arguments, in the process that calls this."""
    from deformable_detr.cli.main import run

    sys.argv = ["ddetr", *map(str, arguments)]
    run()


def _ensure_server() -> None:
    """The server imports before it hears of this process' paths, and threads are counted when PyTorch is imported."""
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _call(function: Callable[..., Any], arguments: Sequence[Any], environment: Mapping[str, str], said: str) -> None:
    assert "tests.preloaded" in sys.modules, "nothing was imported before forking"
    os.setsid()
    os.environ.update(environment)
    for stream, file in ((1, f"{said}.out"), (2, said)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    function(*arguments)
