"""Compiler flags of the CPU kernel and its copies. setup.py runs this file, so it imports nothing of the package."""

import platform
import sys

LIBRARY = {"win32": "_msda.dll", "darwin": "_msda.dylib"}.get(sys.platform, "_msda.so")

_FLAGS = {
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}

INSTRUCTIONS = tuple(_FLAGS)
"""Names of the copies by instruction set, best first; "baseline" runs on every CPU of a platform."""


def copies() -> dict[str, list[str]]:
    """Compiler flags of each copy that this platform can have, by its name."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return _FLAGS
    return {"baseline": _FLAGS["baseline"]}
