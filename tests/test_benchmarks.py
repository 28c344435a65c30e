"""The benchmarks measure what they say, check it first, and report it whole."""

import json
import mmap
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import clock, memory, timing
from benchmarks.cases import MODEL_CASES, OPERATOR_CASES, STEP_CASES, OperatorCase
from benchmarks.data import bench_loading
from benchmarks.model import bench_processes, bench_training, bench_vs_transformers, profile_training
from benchmarks.ops import bench_msda, contenders, peak_memory
from benchmarks.ops.check import Expected, check
from benchmarks.ops.problem import FORMS, LOCATIONS, make, pixel_coordinates
from benchmarks.ops.roofline import copy_bandwidth, traffic
from benchmarks.report import Measurement, json_line, machine, spread, table
from benchmarks.worker import Worker
from deformable_detr.ops.msda import multi_scale_deformable_attention_from_projection
from deformable_detr.ops.reference import locations_and_weights


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
    assert {"baseline", "device", "processor", "threads", "torch", "python", "commit"} <= content.keys()


@pytest.mark.parametrize(
    "name", ["msda/tiny_encoder/attend/forward", "msda/tiny_decoder/sample/backward", "training_step/tiny"]
)
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
    assert len(names) == 4 * len(OPERATOR_CASES) + len(STEP_CASES) == len(set(names))
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


UNEVEN = OperatorCase(((7, 5), (4, 3)), 11, heads=3, head_dim=2, points=4)


@pytest.mark.parametrize("kind", LOCATIONS)
@pytest.mark.parametrize("queries", [None, 11])
def test_both_forms_ask_for_the_same(kind, queries):
    problem = make(UNEVEN._replace(queries=queries), kind, 2, torch.float32, "cpu")
    locations, weights = locations_and_weights(
        problem.value, problem.reference, problem.projection, [7, 5, 4, 3], [4, 4]
    )
    torch.testing.assert_close(problem.locations.flatten(3, 4), locations, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(problem.weights.flatten(3), weights, rtol=1e-5, atol=1e-6)


def test_locations_are_as_described():
    shapes = ((60, 83), (31, 42))
    encoder = OperatorCase(shapes, None, heads=3, head_dim=2, points=4)
    uniform = make(encoder, "uniform", 1, torch.float32, "cpu").locations
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() <= 1
    pixels = pixel_coordinates(make(encoder, "realistic", 1, torch.float32, "cpu").locations, shapes)
    own = torch.stack([torch.arange(60).repeat_interleave(83), torch.arange(83).repeat(60)], dim=-1).flip(-1)
    offsets = pixels[0, : 60 * 83, :, 0] - own[:, None, None]
    assert offsets.std() == pytest.approx(3, rel=0.02)
    assert offsets.mean().abs() < 0.05
    decoder = make(encoder._replace(queries=2000), "realistic", 1, torch.float32, "cpu")
    boxes, locations = decoder.reference[0, :, 0], decoder.locations[0, :, 0]
    # The first head looks to the right: its last point lies at the box's edge.
    reach = (locations[..., -1, 0] - boxes[:, None, 0]) / (boxes[:, None, 2] / 2)
    assert reach.median() == pytest.approx(1, abs=0.02)


def test_bytes_are_counted_by_hand():
    """One query, one head, two samples that share two rows, one of them half outside."""
    problem = make(OperatorCase(((3, 5),), 1, heads=1, head_dim=6, points=2), "uniform", 1, torch.float16, "cpu")
    corners = torch.tensor([[1.5, 0.5], [2.5, 0.5]])  # pixels, between four each
    locations = ((corners + 0.5) / torch.tensor([5, 3])).view(1, 1, 1, 1, 2, 2)
    problem = problem._replace(locations=locations)
    rows, asked, result = 6 * 6 * 2, 2 * 3 * 4, 6 * 2
    assert traffic(problem, "sample", "forward") == (2, rows + asked + result, 2 * 4 * 6 * 2)
    gradients = asked + 2 * 15 * 6 * 4 + 15 * 6 * 2
    assert traffic(problem, "sample", "backward").minimal_bytes == rows + asked + result + gradients
    reference = 2 * 4
    assert traffic(problem, "attend", "forward").minimal_bytes == rows + asked + reference + result
    assert traffic(problem, "attend", "backward").minimal_bytes == rows + asked + reference + result + gradients
    outside = problem._replace(locations=locations + 10)
    assert traffic(outside, "sample", "forward").minimal_bytes == asked + result


def test_the_copy_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.ops.roofline._COPY_MIB", {"cpu": 1})
    assert 1e8 < copy_bandwidth("cpu") < 1e13


class Wrong(contenders.Calls):
    """The baseline with one mistake."""

    def __init__(self, mistake, form, problem):
        super().__init__("baseline", form, problem)
        self.mistake = mistake
        right = self.run
        if mistake == "result":
            self.run = lambda *inputs: right(*inputs) * 1.01
        if mistake == "one query":
            self.run = lambda *inputs: torch.cat([right(*inputs)[:, :-1], right(*inputs)[:, :1]], dim=1)

    def gradients(self, result, towards):
        value, *others = super().gradients(result, towards)
        if self.mistake == "values":
            value = value.roll(1, dims=1)
        if self.mistake == "queries":
            others[-1] = others[-1] * 1.01
        if self.mistake == "first of queries":
            others[0] = others[0] * 1.01
        return value, *others


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mistake", ["result", "one query", "values", "queries", "first of queries", None])
def test_what_is_wrong_is_not_timed(form, mistake):
    problem = make(UNEVEN, "realistic", 2, torch.float32, "cpu")
    expected = Expected(problem, form)
    if mistake is None:
        assert check(Wrong(mistake, form, problem), expected, problem)[0] > 0
        return
    with pytest.raises(AssertionError, match="is off by"):
        check(Wrong(mistake, form, problem), expected, problem)


def test_some_queries_stand_for_all(monkeypatch):
    """What is wrong only where nobody looks is found by the product of both directions."""
    monkeypatch.setattr("benchmarks.ops.check._CHECKED_QUERIES", 3)
    problem = make(UNEVEN, "realistic", 2, torch.float32, "cpu")
    expected = Expected(problem, "sample")
    assert expected.rows.tolist() == [0, 5, 10]
    check(contenders.Calls("baseline", "sample", problem), expected, problem)

    class Elsewhere(contenders.Calls):
        def gradients(self, result, towards):
            towards = towards.clone()
            towards[:, 7] *= 2
            return super().gradients(result, towards)

    with pytest.raises(AssertionError, match="forward and backward disagree"):
        check(Elsewhere("baseline", "sample", problem), expected, problem)

    class Leaking(contenders.Calls):
        def gradients(self, result, towards):
            value, locations, weights = super().gradients(result, towards)
            return value, locations, weights + torch.eye(11)[7][:, None, None, None]

    with pytest.raises(AssertionError, match="gradient 2 of the queries is not zero where nothing was asked"):
        check(Leaking("baseline", "sample", problem), expected, problem)


def test_the_operator_benchmark_from_end_to_end(capsys, monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST_TIMING_S", 0.0)
    monkeypatch.setattr("benchmarks.ops.roofline._COPY_MIB", {"cpu": 1})
    options = (
        "--cases tiny_encoder tiny_decoder --batches 2 --dtypes float32 bfloat16 --locations realistic --no-memory"
    )
    bench_msda.main([*options.split(), "--seconds", "0", "--threads", "1"])
    out, err = capsys.readouterr()
    content = json.loads(out.splitlines()[-1])
    rows = content["results"]
    assert {row["contender"] for row in rows} >= {"baseline", "grid_sample", "reference"}
    assert len({(row["case"], row["dtype"], row["form"], row["direction"]) for row in rows}) == 16
    assert all(row["seconds"]["q20"] <= row["seconds"]["median"] <= row["seconds"]["q80"] for row in rows)
    assert all(row["speed"] == 1 for row in rows if row["contender"] == "baseline")
    assert all(row["clock"] == "wall" and row["seconds"]["runs"] == 5 and row["memory"] is None for row in rows)
    assert {"commit", "threads", "torch", "processor", "copy_bytes_per_second"} <= content.keys()
    assert "tiny_decoder/realistic/b2/bfloat16/attend/backward" in err


def test_named_contenders_are_measured_alone():
    problem = make(UNEVEN, "realistic", 2, torch.float32, "cpu")
    assert contenders.able(problem, compiled=False, named=["grid_sample"]) == ["baseline", "grid_sample"]
    assert contenders.able(problem, compiled=True, named=[])[:2] == ["baseline", "baseline_compiled"]


def test_a_wrong_contender_ends_the_run(monkeypatch):
    def wrong(calls, expected, problem):
        raise AssertionError("result is off by 3")

    monkeypatch.setattr(bench_msda, "check", wrong)
    with pytest.raises(SystemExit, match="baseline is wrong: result is off by 3"):
        bench_msda.main(["--cases", "tiny_decoder", "--no-memory"])


def test_contenders_of_one_process_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST_TIMING_S", 0.0)
    runs = []
    clocks = {label: timing.Wall(lambda label=label: runs.append(label)) for label in "ab"}
    found = timing.interleaved(clocks, 0.0)
    assert {label: one.runs for label, one in found.items()} == {"a": 5, "b": 5}
    assert "".join(runs) == "aabb" + "ab" + "ba" + "ab" + "ba" + "ab"


def test_peak_memory_is_the_peak():
    """40 MiB are held and given back, 8 stay. Straight from the system: an allocator may have some of it left over."""
    kept = []

    def call():
        with mmap.mmap(-1, 40 * 2**20) as held:
            held.write(b"1" * len(held))
        kept.append(mmap.mmap(-1, 8 * 2**20))
        kept[0].write(b"1" * len(kept[0]))

    size, how = memory.peak_extra(call, "cpu")
    kept[0].close()
    assert how in ("VmHWM", "ru_maxrss")
    if how == "VmHWM":
        # The bytes to write may come from the system, too.
        assert 38 < size / 2**20 < 84
        assert memory.peak_resident() > size


# The values' gradient alone is 8.2 MiB, and so is the copy of the values that grid_sample needs.
MEMORY_POINT = ["rtdetr_640", "uniform", "1", "float32", "sample", "backward", "baseline"]


def test_memory_of_an_operator_call(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["peak_memory", *MEMORY_POINT, "1"])
    peak_memory.main()
    size, how = json.loads(capsys.readouterr().out)
    assert how in ("VmHWM", "ru_maxrss")
    assert 0 <= size / 2**20 < 80


@pytest.mark.slow
def test_memory_of_an_operator_call_in_a_fresh_process():
    size, _ = peak_memory.in_a_fresh_process(MEMORY_POINT, 1)
    assert 16 < size / 2**20 < 80


@pytest.mark.slow
def test_against_transformers_from_end_to_end(capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(timing, "SHORTEST_TIMING_S", 0.0)
    monkeypatch.setattr(timing, "_FEWEST_ROUNDS", 1)
    bench_vs_transformers.main(["tiny", "--seconds", "0", "--no-memory", "--threads", "1"])
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["differences"]["logits"] < 1e-4
    assert content["ratios"].keys() == {"inference", "training_step"}
    assert all(both.keys() == {"ours", "transformers"} for both in content["seconds"].values())


@pytest.mark.parametrize("side", ["ours", "transformers"])
def test_training_steps_change_both_models(side):
    pytest.importorskip("transformers")
    case = MODEL_CASES["tiny"]
    config = replace(bench_vs_transformers.config_of(case), dropout=0.0)
    model = bench_vs_transformers.our_model(config)
    if side == "transformers":
        model = bench_vs_transformers.their_model(config, model.state_dict())
    step = bench_vs_transformers.learn(side, model, bench_vs_transformers.training_data(case))
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]


def test_models_that_disagree_are_not_timed(monkeypatch):
    pytest.importorskip("transformers")

    def other(config, weights):
        return right(config, {name: tensor * 1.5 for name, tensor in weights.items()})

    right = bench_vs_transformers.their_model
    monkeypatch.setattr(bench_vs_transformers, "their_model", other)
    with pytest.raises(SystemExit, match="the models do not agree"):
        bench_vs_transformers.compare(MODEL_CASES["tiny"])


def test_loading_is_measured_against_the_step(scenes, capsys, monkeypatch, tiny_config):
    monkeypatch.setattr(bench_loading, "small", lambda: tiny_config)
    common = ["--presets", "strong", "--threads", "1", "--batch-size", "2"]
    bench_loading.main([str(scenes), *common, "--workers", "0", "1", "--rounds", "2", "--seconds", "0.01"])
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["loaders"]) == ["strong, 0 workers", "strong, 1 workers"]
    assert all(one["ratio"] > 0 and one["images_per_second"] > 0 for one in figures["loaders"].values())
    assert figures["step_images_per_second"] > 0
    bench_loading.main([str(scenes), *common, "--workers", "1", "--memory", "4"])
    readings = json.loads(capsys.readouterr().out)["memory_mb_by_step"]
    assert list(readings) == ["1", "2", "3", "4"]
    assert min(readings.values()) > 50


@pytest.mark.slow
def test_ways_to_take_a_training_step(scenes, capsys, monkeypatch, tiny_config):
    monkeypatch.setattr(timing, "_FEWEST_ROUNDS", 1)
    monkeypatch.setattr(bench_training, "RECIPES", {"small": lambda: tiny_config})
    ways = ["float32", "bfloat16", "float16", "grid_sample", "checkpointed", "one_by_one"]
    common = [str(scenes), "--ways", *ways, "--threads", "1", "--batch-size", "2", "--batches", "2", "--seconds", "0"]
    bench_training.main(common)
    out, err = capsys.readouterr()
    content = json.loads(out.splitlines()[-1])
    assert list(content["images_per_second"]) == [way for way in ways if way != "float16"]
    assert "float16 is left out: precision float16 is for GPUs" in err
    assert all(speed > 0 for speed in content["images_per_second"].values())
    bench_training.main([*common, "--memory-of", "float32"])
    assert int(capsys.readouterr().out) >= 0  # this process is not a fresh one


@pytest.mark.slow
def test_throughput_of_processes(capsys, monkeypatch, tiny_config):
    monkeypatch.setattr(bench_processes, "RECIPES", {"small": lambda: tiny_config})
    torch.set_num_threads(2)
    try:
        bench_processes.main(["--image-size", "64", "--images", "9", "--rounds", "1"])
    finally:
        torch.set_num_threads(1)
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(SystemExit):
        bench_processes.main(["--images", "2"])
    assert list(content["images_per_second"]) == ["one thread", "2 threads", "2 processes"]
    assert all(speed > 0 for speed in content["images_per_second"].values())


@pytest.mark.slow
def test_profile_of_a_training_step(scenes, capsys, monkeypatch, tiny_config):
    monkeypatch.setattr(bench_training, "RECIPES", {"small": lambda: tiny_config})
    profile_training.main([str(scenes), "--threads", "1", "--batch-size", "2", "--batches", "2"])
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(content["shares"].values()) == pytest.approx(1.0)
    assert content["shares"]["products"] > 0.02
    assert content["calls"]["deformable attention"] > 0
    assert profile_training.kind_of("aten::native_group_norm_backward") == "norms"
    assert profile_training.kind_of("MulBackward0") == profile_training.OTHERS


def test_every_way_takes_the_same_step(scenes, tiny_config):
    given = bench_training._options([str(scenes), "--recipe", "demo", "--batch-size", "2"])
    config, data = bench_training.settings(given)
    config = replace(config, model=replace(tiny_config.model, num_classes=len(data.classes), dropout=0.0))
    ready = bench_training.batches(config, data, 2, "cpu")
    losses = {}
    for name in ("float32", "grid_sample", "checkpointed", "one_by_one"):
        step = bench_training.Step(bench_training.WAYS[name], config, "cpu")
        losses[name] = [step.take(batch) for batch in (*ready, ready[0])]
        assert multi_scale_deformable_attention_from_projection is not bench_training._grid_sample
    assert losses["float32"][2] != losses["float32"][0]
    for name, found in losses.items():
        # One by one a batch has less padding, which the published features see.
        assert found == pytest.approx(losses["float32"], rel=0.2 if name == "one_by_one" else 2e-3), name


def test_a_way_that_computes_something_else_is_not_timed(scenes, tiny_config, monkeypatch):
    given = bench_training._options([str(scenes), "--batch-size", "2"])
    config, data = bench_training.settings(given)
    config = replace(config, model=replace(tiny_config.model, num_classes=len(data.classes)))
    ready = bench_training.batches(config, data, 1, "cpu")
    right = bench_training._grid_sample
    monkeypatch.setattr(
        bench_training, "_grid_sample", lambda *problem, num_points: 3 * right(*problem, num_points=num_points)
    )
    with pytest.raises(SystemExit, match="grid_sample has a loss of"):
        bench_training.prepare(["float32", "grid_sample"], config, ready, "cpu")


def test_the_clock_counts_the_work_of_a_process_and_not_its_waiting():
    waiting = clock.cpu_seconds(clock.Process(("-c", "import time; time.sleep(0.6)")))
    working = clock.cpu_seconds(clock.Process(("-c", "import time\nwhile time.process_time() < 0.6: pass")))
    assert waiting < 0.5 < working
    with pytest.raises(RuntimeError, match=r"ended with 3, not 0: .*nothing here"):
        clock.cpu_seconds(clock.Process(("-c", "import sys; sys.stderr.write('nothing here'); sys.exit(3)")))


def test_the_clock_shows_multiples_of_importing_torch(tmp_path):
    names = list(clock.processes(tmp_path))
    assert names[0] == clock.BASELINE
    results = {name: spread([2.0 + place]) for place, name in enumerate(names)}
    assert list(clock.ratios(results).values())[:3] == [1.0, 1.5, 2.0]
    last = clock.shown(results).splitlines()[-1]
    assert (last.startswith(names[-1]), last.endswith("6.00 x")) == (True, True)
