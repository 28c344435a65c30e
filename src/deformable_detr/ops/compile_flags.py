"""How the CPU kernel is compiled: which copies, with which flags. Used by setup.py, so it imports nothing of ours."""

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
"""Names of the copies, best first; "baseline" is what every processor of a platform has."""


def copies() -> dict[str, list[str]]:
    """Compiler flags of the copies that make sense on this platform."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return _FLAGS
    return {"baseline": _FLAGS["baseline"]}
