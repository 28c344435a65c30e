import pytest
import torch

from deformable_detr.core import memory
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.memory import check_fits, free_memory, kernel_bytes

CPU = torch.device("cpu")


def test_a_container_has_what_files_take_up(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_memory(CPU) > 10**7  # a system without such files
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 700000\nactive_file 100000\n")
    assert free_memory(CPU) == 800000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > 10**7


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert free_memory(CPU) is None
    check_fits(10**15, 1, CPU, "images", "")
    (tmp_path / "nothing").write_text("VmRSS: 12 kB\n")
    assert kernel_bytes(tmp_path / "nothing", "VmRSS") == 12 * 1024
    assert free_memory(CPU) is None


def test_what_cannot_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 2**30)
    check_fits(3 * 2**20, 1024, CPU, "2 images", "less")
    with pytest.raises(ConfigError, match=r"^2 images need more than 4\.0 GiB of memory, and 3\.0 GiB are free; less$"):
        check_fits(4 * 2**20, 1024, CPU, "2 images", "less")
