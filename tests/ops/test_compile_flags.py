"""Which copies of the kernel are compiled where."""

import platform

from deformable_detr.ops import compile_flags as build


def test_an_intel_or_amd_processor_gets_three_copies(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    assert list(build.copies()) == ["avx512", "avx2", "baseline"] == list(build.INSTRUCTIONS)
    assert "-mavx512f" in build.copies()["avx512"]
    assert build.copies()["baseline"] == []


def test_any_other_gets_what_all_of_its_kind_have(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert build.copies() == {"baseline": []}
