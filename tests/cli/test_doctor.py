import json
from dataclasses import replace

import pytest

from deformable_detr.ops import compile_flags as build
from deformable_detr.ops import cpu
from deformable_detr.ops import doctor as diagnosis
from deformable_detr.ops import selftest as trial


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
