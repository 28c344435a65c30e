import subprocess
import sys

from deformable_detr.core.version import __version__


def test_python_can_start_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "deformable_detr.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ddetr {__version__}\n"
