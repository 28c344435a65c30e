from pathlib import Path

import pytest

from deformable_detr.core.cache import cache_folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "h"))
    for own, expected in ((str(tmp_path / "cache"), tmp_path / "cache"), ("~/c", tmp_path / "h/c")):
        monkeypatch.setenv("DEFORMABLE_DETR_CACHE", own)
        assert cache_folder() == expected
    monkeypatch.delenv("DEFORMABLE_DETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "deformable_detr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "h" / ".cache" / "deformable_detr"
