import json
import platform
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from deformable_detr.core.version import __version__
from deformable_detr.ops import compile_flags as build
from deformable_detr.ops import cpu
from deformable_detr.ops import doctor as diagnosis
from deformable_detr.ops import selftest as trial
from deformable_detr.ops.doctor import diagnose

needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason="no compiler was found at installation")


@pytest.fixture
def no_kernel(monkeypatch):
    """As where there was no compiler at installation."""
    monkeypatch.setattr(build, "LIBRARY", "_nothing_here.so")
    cpu._find.cache_clear()
    yield
    cpu._find.cache_clear()


@pytest.fixture
def quick(monkeypatch):
    """One run of each timing."""
    monkeypatch.setattr(trial, "_ENOUGH_S", 1e-9)


@pytest.fixture
def wrong(monkeypatch):
    """A kernel that errs in bfloat16."""
    check = trial.check

    def spoilt(choice):
        found = check(choice)
        return replace(found, gradient_error=0.25) if choice.dtype == "bfloat16" else found

    monkeypatch.setattr(trial, "check", spoilt)


@needs_kernel
def test_it_says_what_a_maintainer_would_ask(quick):
    report = diagnose()
    assert report.ok
    assert report.versions["deformable-detr"] == __version__
    assert report.versions["torch"] == torch.__version__
    assert report.versions["cuda"] == torch.version.cuda
    assert {"python", "torchvision", "timm", "triton"} < set(report.versions)
    assert report.num_threads == torch.get_num_threads()
    assert 1 <= report.num_usable_processors <= report.num_processors
    assert report.cpu_kernel.path == str(cpu.kernel().path)
    assert report.cpu_kernel.instructions == cpu.kernel().instructions
    assert report.cpu_kernel.copies[cpu.kernel().instructions]
    assert "baseline" in report.cpu_kernel.copies
    assert report.cpu_kernel.uses_threads
    assert [(one.device, one.dtype) for one in report.choices[:4]] == [
        ("cpu", "float32"),
        ("cpu", "bfloat16"),
        ("cpu", "float16"),
        ("cpu", "float64"),
    ]
    assert [one.backend for one in report.checks] == [one.backend for one in report.choices]
    assert {one.device for one in report.timings} == {one.device for one in report.choices}


def test_without_timing_there_is_none():
    report = diagnose(timing=False)
    assert report.timings == ()


def test_json_holds_the_same(quick):
    report = diagnose()
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["ok"] is True
    assert read["problems"] == []
    assert read["versions"] == report.versions
    assert [one["backend"] for one in read["checks"]] == [one.backend for one in report.checks]
    assert len(read["timings"]) == len(report.timings) > 0


def test_a_missing_kernel_is_said_once_and_is_no_problem(no_kernel, quick):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = diagnose()
        assert cpu.missing() is not None  # and nobody is warned of it again
    assert report.ok
    assert report.cpu_kernel.path is None
    assert report.cpu_kernel.copies == {}
    assert "_nothing_here.so was not built" in str(report.cpu_kernel.missing)
    assert [one.backend for one in report.checks[:4]] == ["grid_sample"] * 4


def test_other_warnings_are_not_kept_back(monkeypatch):
    def complain():
        warnings.warn("something else", stacklevel=1)
        return cpu._find()[1]

    monkeypatch.setattr(cpu, "missing", complain)
    with pytest.warns(UserWarning, match="something else"):
        diagnose(timing=False)


def test_a_wrong_backend_is_named_with_its_errors(wrong):
    report = diagnose(timing=False)
    assert not report.ok
    name = report.checks[1].backend
    assert len(report.problems()) == 1 + torch.cuda.device_count()
    assert report.problems()[0].startswith(f"backend {name} on cpu with bfloat16 errs by ")
    assert report.problems()[0].endswith("in the result and 2.5e-01 in the gradient; allowed is 7.8e-03")
    assert report.to_json()["ok"] is False
    assert list(report.to_json()["problems"]) == list(report.problems())


def test_what_is_wrong_is_not_timed(monkeypatch, quick):
    check = trial.check
    monkeypatch.setattr(trial, "check", lambda choice: replace(check(choice), problem="Error: broken"))
    report = diagnose()
    assert report.timings == ()
    assert report.problems()[0] == f"backend {report.checks[0].backend} on cpu with float32: Error: broken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that works")
def test_a_gpu_that_cannot_be_used_is_a_problem_and_is_not_tried(monkeypatch):
    properties = SimpleNamespace(name="Some GPU", total_memory=12 * 2**30, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(diagnosis, "_use", refuse)
    report = diagnose(timing=False)
    assert report.gpus[0].problem == "out of everything"
    assert report.problems() == ("cuda:0 cannot be used: out of everything",)
    assert {one.device for one in report.choices} == {"cpu"}
    assert (report.gpus[0].name, report.gpus[0].memory_bytes, report.gpus[0].compute_capability) == (
        "Some GPU",
        12 * 2**30,
        "8.6",
    )


def refuse(device):
    raise RuntimeError("out of everything\nand a long story")


@pytest.mark.gpu
def test_a_gpu_is_described_and_tried(quick):
    report = diagnose()
    assert report.ok, report.problems()
    assert report.gpus[0].name == torch.cuda.get_device_name(0)
    assert {one.backend for one in report.timings if one.device == "cuda:0"} >= {"grid_sample"}
    on_gpu = {one.dtype: one for one in report.choices if one.device == "cuda:0"}
    assert on_gpu["float64"].others["triton"] == "it computes in float32, value is torch.float64"


def test_packages_that_are_missing_are_said_to_be(monkeypatch):
    monkeypatch.setattr(diagnosis, "_PACKAGES", ("torchvision", "surely-not-installed"))
    report = diagnose(timing=False)
    assert report.versions["surely-not-installed"] is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_whatever_the_caller_is_in_the_middle_of(mode):
    with mode():
        assert diagnose(timing=False).ok


def test_processors_without_a_model_name_have_at_least_an_architecture(monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis.sys, "platform", "other")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert diagnosis._processor() == platform.machine()
