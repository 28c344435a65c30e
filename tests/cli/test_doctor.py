import json
from dataclasses import replace

import pytest
import torch

from deformable_detr.cli.doctor import render
from deformable_detr.ops import compile_flags as build
from deformable_detr.ops import cpu
from deformable_detr.ops import doctor as diagnosis
from deformable_detr.ops import selftest as trial
from deformable_detr.ops.doctor import Gpu, diagnose

needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason="no compiler was found at installation")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(trial, "_ENOUGH_S", 1e-9)


def test_people_read_text_that_can_be_redirected(ddetr):
    result = ddetr("doctor")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("deformable-detr")
    assert "Timing in ms" in result.out
    assert result.out.endswith("OK: no problems found.\n")


def test_machines_read_json(ddetr):
    result = ddetr("doctor", "--json", "--no-timing")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["ok"] is True
    assert report["timings"] == []
    assert report["checks"][0]["dtype"] == "float32"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_exit_code_1_if_a_backend_computes_nonsense(ddetr, monkeypatch, options):
    check = trial.check
    monkeypatch.setattr(trial, "check", lambda choice: replace(check(choice), result_error=0.5))
    result = ddetr("doctor", "--no-timing", *options)
    assert result.code == 1
    assert "with float32 errs by 5.0e-01 in the result" in result.out


def test_a_missing_kernel_is_no_failure(ddetr, monkeypatch):
    monkeypatch.setattr(build, "LIBRARY", "_nothing_here.so")
    cpu._find.cache_clear()
    try:
        result = ddetr("doctor", "--no-timing")
    finally:
        cpu._find.cache_clear()
    assert (result.code, result.err) == (0, "")
    assert "none: _nothing_here.so was not built" in result.out
    assert result.out.count("_nothing_here.so was not built") == 2  # and as the reason why it does not run
    assert "no C compiler was found" in result.out
    assert "So deformable attention runs on grid_sample, some 30 times slower on the CPU." in result.out
    assert "Install gcc or clang and reinstall deformable-detr, with --no-cache-dir" in result.out
    assert "  cpu, float32 bfloat16 float16 float64: grid_sample" in result.out


def test_timing_is_asked_for_unless_it_is_not_wanted(ddetr, monkeypatch):
    asked = []
    diagnose = diagnosis.diagnose

    def record(*, timing):
        asked.append(timing)
        return diagnose(timing=False)

    monkeypatch.setattr(diagnosis, "diagnose", record)
    ddetr("doctor")
    ddetr("doctor", "--no-timing")
    assert asked == [True, False]


@needs_kernel
def test_the_text_holds_all_of_it_and_fits_a_screen():
    report = diagnose()
    text = render(report)
    for name, version in report.versions.items():
        assert version is None or version in text, name
    for part in (report.platform, report.processor, str(cpu.kernel().path), "works on PyTorch's threads"):
        assert part in text
    lines = text.splitlines()
    if torch.cuda.device_count() == 0:
        assert "  cpu, float32 bfloat16 float16 float64: cpu" in lines
        assert "    triton cannot run: it needs a CUDA tensor, value is on cpu" in lines
        assert "    grid_sample could run, but is slower" in lines
        assert len(lines) <= 40
    assert lines[-1] == "OK: no problems found."
    assert all(line == line.rstrip() for line in lines)
    assert sum(line.endswith("  ok") for line in lines) == len(report.checks)


def test_without_timing_there_is_no_table_of_it():
    assert "Timing" not in render(diagnose(timing=False))


def test_what_is_wrong_stands_at_the_end_and_in_the_table(monkeypatch):
    check = trial.check

    def spoilt(choice):
        found = check(choice)
        return replace(found, gradient_error=0.25) if choice.dtype == "bfloat16" else found

    monkeypatch.setattr(trial, "check", spoilt)
    report = diagnose(timing=False)
    text = render(report)
    assert f"PROBLEM: {report.problems()[0]}" in text
    assert "OK" not in text
    assert [line.split()[1] for line in text.splitlines() if line.endswith("WRONG")] == ["bfloat16"] * len(
        report.problems()
    )


@needs_kernel
def test_a_kernel_without_threads_and_with_copies_for_others_says_so():
    report = diagnose(timing=False)
    kernel = replace(
        report.cpu_kernel,
        instructions="avx2",
        copies={"avx512": False, "avx2": True, "baseline": True},
        uses_threads=False,
    )
    text = render(replace(report, cpu_kernel=kernel))
    assert "uses avx2; also holds avx512 (not for this CPU), baseline; works on one thread" in text


def test_gpus_and_packages_that_are_missing():
    gpu = Gpu(device="cuda:0", name="Some GPU", memory_bytes=12 * 2**30, compute_capability="8.6", problem="broken")
    report = diagnose(timing=False)
    report = replace(report, gpus=(gpu,), versions=report.versions | {"surely-not-installed": None})
    text = render(report)
    assert "cuda:0 Some GPU, 12.0 GiB, compute capability 8.6" in text
    assert "surely-not-installed  not installed" in text
    assert text.endswith("PROBLEM: cuda:0 cannot be used: broken")


def test_who_does_the_products_of_whole_models(ddetr, monkeypatch):
    assert "faster by oneDNN with packed weights: " in ddetr("doctor").out
    assert "not measured without timing" in ddetr("doctor", "--no-timing").out
    monkeypatch.setattr("deformable_detr.inference.onednn._NAMES", ("_a_name_that_is_gone",))
    result = ddetr("doctor", "--no-timing")
    assert (result.code, result.err) == (0, "")
    assert "no longer has torch.ops.mkldnn._a_name_that_is_gone" in result.out
