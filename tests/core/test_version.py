"""One version, everywhere."""

from importlib.metadata import version

import deformable_detr
from deformable_detr.core.version import __version__


def test_the_installed_package_has_the_version_of_the_source():
    assert deformable_detr.__version__ == __version__ == version("deformable-detr")
