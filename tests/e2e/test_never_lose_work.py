"""Whatever ends a run, at whatever moment, it goes on to the very bits of a run that nothing has ended."""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, DataError, OutputError, TrainingError
from deformable_detr.core.files import write_atomically
from deformable_detr.runs import folder as run_folder
from deformable_detr.training import loop
from deformable_detr.training.train import resume, train
from deformable_detr.weights.checkpoint import load
from tests import processes


class Notes:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        pass


@pytest.fixture
def config(tiny_config):
    """Six steps in two epochs, saved after each."""
    return tiny_config.with_settings(batch_size=2, epochs=2, save_every=1e-9)


@pytest.fixture
def ddetr(tmp_path):
    """ddetr(arguments) -> `ddetr train` in a process of its own, which does not outlive the test."""
    started = []

    def start(*arguments):
        said = tmp_path / f"said-{len(started)}.txt"
        started.append(processes.start(processes.ddetr, ["train", *arguments, "--device", "cpu"], said=said))
        return started[-1].process

    yield start
    for process in started:
        process.__exit__()


def begin(ddetr, config, scenes, folder, tmp_path):
    """Begin a run, and wait until there is something to lose."""
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(config)))
    process = ddetr(tmp_path / "settings.json", "--data", scenes, "--output", folder)
    while not (folder / "metrics.jsonl").exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def lines(folder):
    volatile = {"time", "images_per_second", "memory_bytes", "train_seconds", "val_seconds"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in volatile} for record in records]


def assert_same_run(one, other):
    for name in ("last.safetensors", "best.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert lines(one) == lines(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "workers", "kills", "hits"),
    [(5, 0, 3, 1), pytest.param(30, 1, 20, 10, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(ddetr, config, scenes, tmp_path, epochs, workers, kills, hits):
    config = config.with_settings(epochs=epochs, num_workers=workers, eval_every=3)
    whole = train(config, data=scenes, output=tmp_path / "whole", device="cpu").folder
    folder, rng, hit = tmp_path / "killed", random.Random(1), 0
    process = begin(ddetr, config, scenes, folder, tmp_path)
    for _ in range(kills):
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        process.join()
        hit += process.exitcode == -signal.SIGKILL
        process = ddetr("--resume", folder)
    process.join(300)
    assert process.exitcode in (0, 1)  # 1: there was nothing left to do
    assert hit >= hits
    assert_same_run(whole, folder)
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGTERM, 143, 0),
        (signal.SIGHUP, 129, 0),
        pytest.param(signal.SIGTERM, 143, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_end_saves_and_says_so_with_its_exit_code(ddetr, config, scenes, tmp_path, number, code, workers):
    config = config.with_settings(epochs=300, save_every=0.0, num_workers=workers)
    process = begin(ddetr, config, scenes, tmp_path / "run", tmp_path)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert load(tmp_path / "run" / "last.safetensors", training=True).training.progress["progress"]["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_readers_and_all_leaves_no_process(ddetr, config, scenes, tmp_path, number, code):
    """As a scheduler sends it, or a terminal that closes: to every process of the job, at the same moment."""
    config = config.with_settings(epochs=300, save_every=0.0, num_workers=2)
    process = begin(ddetr, config, scenes, tmp_path / "run", tmp_path)
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    # The last of the readers may leave a moment later.
    until = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_sigterm_to_all_of_a_real_command_leaves_no_process(config, scenes, tmp_path):
    folder, settings = tmp_path / "run", tmp_path / "settings.json"
    settings.write_text(json.dumps(to_dict(config.with_settings(epochs=300, save_every=0.0, num_workers=2))))
    command = [sys.executable, "-m", "deformable_detr.cli", "train", settings, "--data", scenes, "--output", folder]
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (folder / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=60)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, said


def stop_in_step(monkeypatch, number, what):
    """Do it inside the step of this number, counted from now."""
    take, numbers = loop.gradient_step, itertools.count(1)

    def step(learner, batch):
        if next(numbers) == number:
            what()
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", step)


def test_sigterm_in_a_step_is_answered_after_it(config, scenes, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_in_step(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        done = train(config, data=scenes, output=tmp_path / "run", device="cpu", on_interrupt="return")
    assert (done.interrupted, done.terminated, done.epochs_completed) == (True, True, 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert resume(tmp_path / "run", device="cpu").epochs_completed == 2


def test_a_run_that_is_under_way_has_its_folder_for_itself(ddetr, config, scenes, tmp_path):
    config, folder = config.with_settings(epochs=300), tmp_path / "run"
    process = begin(ddetr, config, scenes, folder, tmp_path)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(
        OutputError, match=rf"run is in use: process {process.pid} on .* trains in it; wait for its end"
    ):
        resume(folder, device="cpu", epochs=301)
    assert process.is_alive()
    assert (folder / "config.json").read_bytes() == before
    # A run that was killed left its lock behind, which stops nobody.
    process.kill()
    process.join()
    assert (folder / ".lock").exists()
    completed = load(folder / "last.safetensors", training=True).training.progress["progress"]["epoch"]
    assert resume(folder, device="cpu", epochs=completed + 1).epochs_completed == completed + 1
    assert not (folder / ".lock").exists()


def test_where_ctrl_c_is_ignored_sigterm_still_saves_and_that_is_said(config, scenes, tmp_path, monkeypatch):
    """As in a job that a shell has started in the background."""
    notes = Notes()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_in_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        stop_in_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        arguments = {"data": scenes, "output": tmp_path / "run", "device": "cpu", "on_interrupt": "return"}
        done = train(config, **arguments, reporter=notes)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.interrupted, done.terminated) == (True, True)
    assert load(done.folder / "last.safetensors", training=True).training.progress["progress"]["step"] == 2
    assert sum("Ctrl-C is off here, SIGTERM stops" in line for line in notes.lines) == 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_what_was_saved(config, scenes, tmp_path, monkeypatch, workers):
    whole = train(config, data=scenes, output=tmp_path / "whole", device="cpu").folder
    write = write_atomically

    def full(path, fill):
        def half(temporary):
            fill(temporary)
            os.truncate(temporary, 1000)
            raise OSError(errno.ENOSPC, "No space left on device")

        write(path, half if saves.pop(0) else fill)

    saves = []
    notes = Notes()
    with monkeypatch.context() as patched:
        stop_in_step(patched, 3, lambda: patched.setattr(run_folder, "write_atomically", full))
        saves[:] = [True]
        with pytest.raises(OutputError, match="No space left on device"):
            train(config, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    assert any("the last checkpoint is complete; to continue: ddetr train --resume" in line for line in notes.lines)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["data"]["num_workers"] = workers
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    resume(tmp_path / "run", device="cpu")
    assert_same_run(whole, tmp_path / "run")


def test_a_folder_that_goes_away(config, scenes, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stop_in_step(monkeypatch, 3, lambda: folder.rename(tmp_path / "elsewhere"))
    with pytest.raises(OutputError, match="cannot write"):
        train(config.with_settings(log_every=100), data=scenes, output=folder, device="cpu")
    assert load(tmp_path / "elsewhere" / "last.safetensors", training=True).training.progress["progress"]["step"] == 2


@pytest.mark.parametrize("length", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 100)), 0.5])
def test_a_cut_checkpoint_is_replaced_by_the_one_before(config, scenes, tmp_path, length):
    whole = train(config, data=scenes, output=tmp_path / "run", device="cpu").folder
    reference = {name: (whole / name).read_bytes() for name in ("best.safetensors", "metrics.jsonl")}
    # Copies: what is loaded lies in the file, which will be cut.
    first = {name: tensor.clone() for name, tensor in load_file(whole / "last.safetensors").items()}
    last = whole / "last.safetensors"
    os.truncate(last, int(length * last.stat().st_size) if isinstance(length, float) else length)
    notes = Notes()
    resume(whole, device="cpu", reporter=notes)
    assert any("last.safetensors is not a whole safetensors file" in line for line in notes.lines)
    assert "continuing from last-1.safetensors, an older checkpoint" in notes.lines
    again = load_file(last)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len((whole / "metrics.jsonl").read_text().splitlines()) == len(reference["metrics.jsonl"].splitlines())
    for path in whole.glob("last*.safetensors"):
        os.truncate(path, 10)
    with pytest.raises(CheckpointError, match=r"last\.safetensors is not a whole"):
        resume(whole, device="cpu")


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_the_run_goes_on(config, scenes, tmp_path, monkeypatch):
    config = config.with_settings(num_workers=1)
    whole = train(config, data=scenes, output=tmp_path / "whole", device="cpu").folder

    def kill_worker():
        (worker, *_) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    with monkeypatch.context() as patched:
        stop_in_step(patched, 4, kill_worker)
        with pytest.raises(DataError, match=r"a process that reads images ended unexpectedly: .*pid.*--workers"):
            train(config, data=scenes, output=tmp_path / "run", device="cpu")
    resume(tmp_path / "run", device="cpu")
    assert_same_run(whole, tmp_path / "run")


def poison(monkeypatch, first, last):
    """Images of these steps, counted from now, hold a NaN."""
    take, numbers = loop.gradient_step, itertools.count(1)

    def step(learner, batch):
        if first <= next(numbers) <= last:
            batch.images[0, 0, 0, 0] = float("nan")
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", step)


def test_a_poisoned_step_stops_and_no_checkpoint_has_it(config, scenes, tmp_path, monkeypatch):
    poison(monkeypatch, 3, 3)
    notes = Notes()
    with pytest.raises(TrainingError, match=r"step 3, epoch 1: .*not finite.*images: .*\.jpg"):
        train(config, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    # To continue with the same settings would come to the same end.
    assert any(f"{tmp_path / 'run' / 'last.safetensors'}; other settings" in line for line in notes.lines)
    assert not any("--resume" in line for line in notes.lines)
    saved = load(tmp_path / "run" / "last.safetensors", training=True)
    assert saved.training.progress["progress"]["step"] == 2
    for tensors in (saved.weights, saved.training.tensors):
        assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_a_poisoned_step_can_be_left_out_and_changes_nothing(config, scenes, tmp_path, monkeypatch):
    poison(monkeypatch, 3, 4)
    notes = Notes()
    skipping = config.with_settings(on_non_finite="skip")
    done = train(skipping, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    assert (done.num_not_finite, done.epochs_completed) == (2, 2)
    assert sum(line.startswith("left out: step ") for line in notes.lines) == 2
    tensors = load_file(done.folder / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    poison(monkeypatch, 3, 99)
    with pytest.raises(TrainingError, match="10 steps in a row left out"):
        train(skipping.with_settings(epochs=9), data=scenes, output=tmp_path / "other", device="cpu")
