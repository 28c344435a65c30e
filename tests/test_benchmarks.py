"""The benchmarks measure what they say, check it first, and report it whole."""

import json

import pytest

from benchmarks import __main__ as bench
from benchmarks.cases import OPERATOR_CASES, STEP_CASES
from benchmarks.report import Measurement, json_line, machine, spread, table
from benchmarks.worker import Worker


def test_the_spread_of_several_runs():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (2.0, 3.5, 5.0, 6)
    assert spread([7.0]) == (7.0, 7.0, 7.0, 1)


def test_the_report():
    results = {
        "msda/x/forward": {"reference": spread([0.2]), "fast": spread([0.05])},
        "step/y": {"auto": spread([1.0])},
    }
    lines = table(results, "reference").splitlines()
    assert lines[2].split() == ["msda/x/forward", "reference", "200.00", "200.00", "..", "200.00", "1.00", "x"]
    assert lines[3].endswith("4.00 x")
    assert lines[4].endswith("1000.00 .. 1000.00")
    content = json.loads(json_line(results, "reference", machine("cpu")))
    assert content["seconds"]["msda/x/forward"]["fast"]["median"] == 0.05
    assert {"baseline", "device", "processor", "threads", "torch", "python"} <= content.keys()


@pytest.mark.parametrize("name", ["msda/tiny/forward", "msda/tiny/forward+backward", "training_step/tiny"])
def test_a_worker_checks_and_times(name):
    worker = Worker("cpu")
    assert name in worker.answer({"do": "names", "all": True})
    assert name not in worker.answer({"do": "names", "all": False})
    figures = []
    for contender in worker.answer({"do": "contenders", "name": name}):
        request = {"name": name, "contender": contender}
        figures.append(worker.answer({"do": "prepare", **request}))
        assert worker.answer({"do": "run", **request}) > 0
        worker.answer({"do": "forget", **request})
    assert all(one == pytest.approx(figures[0], rel=1e-4) for one in figures)
    assert not worker.prepared


def test_the_names_are_of_the_cases():
    names = Worker("cpu").answer({"do": "names", "all": True})
    assert len(names) == 2 * len(OPERATOR_CASES) + len(STEP_CASES) == len(set(names))
    assert all(case.num_positions == sum(h * w for h, w in case.spatial_shapes) for case in OPERATOR_CASES.values())


class Fake:
    """A worker that answers at once: the same figures as all others, unless told otherwise."""

    def __init__(self, figures=(1.0,), fails=False):
        self.figures, self.fails, self.runs = list(figures), fails, 0

    def ask(self, **request):
        if request["do"] == "prepare":
            if self.fails:
                raise bench.Failure("cannot")
            return self.figures
        self.runs += request["do"] == "run"
        return 0.5


def test_contenders_take_turns_and_who_cannot_run_is_left_out(capsys):
    fakes = {"old": Fake(fails=True), "now": Fake()}
    found = bench.measure("case", [bench.Contender(label, fake, "auto") for label, fake in fakes.items()], rounds=3)
    assert found == {"now": (0.5, 0.5, 0.5, 3)}
    assert "case: old is left out: cannot" in capsys.readouterr().err
    assert fakes["now"].runs == 3


def test_contenders_that_disagree_stop_it(capsys):
    fakes = {"old": Fake(), "now": Fake(figures=[1.1])}
    with pytest.raises(SystemExit):
        bench.measure("case", [bench.Contender(label, fake, "auto") for label, fake in fakes.items()], rounds=3)
    assert "now gives [1.1], old gives [1.0]" in capsys.readouterr().err


def test_a_measurement_is_repeated_until_it_can_be_timed():
    runs = []
    assert Worker("cpu")._time(Measurement(list, lambda: runs.append(1)), 5) > 0
    assert len(runs) == 5
