import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deformable_detr.core.errors import DataError
from deformable_detr.data import images
from deformable_detr.data.handles import check_handles

resource = pytest.importorskip("resource", reason="Windows has no such limit")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The limits of this process, as the tested function sees and sets them."""
    now = {"limits": (0, 0)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: now["limits"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: now.update(limits=limits))
    return now


def test_where_the_limit_is_high_enough_nothing_happens(limits: dict[str, tuple[int, int]]) -> None:
    for enough in ((1024, 1024), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        limits["limits"] = enough
        check_handles(2, num_loaders=2)
        assert limits["limits"] == enough
    limits["limits"] = (3, 3)
    check_handles(0, num_loaders=2)


def test_a_limit_that_may_be_raised_is_raised(limits: dict[str, tuple[int, int]]) -> None:
    for hard, expected in ((4096, 1024), (500, 500), (resource.RLIM_INFINITY, 1024)):
        limits["limits"] = (16, hard)
        check_handles(2, num_loaders=2)
        assert limits["limits"] == (expected, hard)


def test_a_limit_that_is_too_low_is_said_with_both_numbers(limits: dict[str, tuple[int, int]]) -> None:
    limits["limits"] = (16, 32)
    with pytest.raises(DataError, match=r"2 processes .* need \d+ open files, and 32 are allowed here; .* --workers 0"):
        check_handles(2, num_loaders=2)
    assert limits["limits"] == (16, 32)


def test_too_few_handles_are_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: object) -> None:
        raise OSError(24, "Too many open files")

    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "open_file", full)
    with pytest.raises(OSError, match="Too many open files"):
        images.load_image(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.parametrize("handles", [16, 32, 64])
def test_a_real_loader_reads_or_says_why_not_and_never_waits(handles: int, scenes: Path) -> None:
    program = f"""
import resource
from deformable_detr.core.errors import DataError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.loader import make_loader, open_workers
from deformable_detr.data.open import open_dataset
from deformable_detr.data.preprocessing import Preprocessing
resource.setrlimit(resource.RLIMIT_NOFILE, ({handles}, {handles}))
dataset, preprocessing = open_dataset({str(scenes)!r}), Preprocessing(short_side=20, max_side=40)
try:
    loader = make_loader(dataset, preprocessing, batch_size=4, augmentation=Augmentation().scaled(20), num_workers=1)
    with open_workers(loader):
        print(sum(len(batch.images) for batch in loader))
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False, env={**os.environ}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "8\n" or f"and {handles} are allowed here" in done.stdout
