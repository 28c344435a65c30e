"""Several processes give what one gives, in the same order; whether they pay is measured and said."""

import copy
import os
import pickle

import pytest
import torch
from PIL import Image

from deformable_detr.core.errors import ConfigError, DataError
from deformable_detr.core.progress import Silence
from deformable_detr.inference import processes
from deformable_detr.inference.image_results import PredictionSettings
from deformable_detr.inference.processes import check_processes, results_of


class Lines(Silence):
    """Reporter that keeps the lines."""

    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.fixture
def photos(tmp_path):
    """Fourteen of two sizes; the fifth is no picture."""
    paths = []
    for number in range(14):
        path = tmp_path / f"{number:02}.png"
        size_wh = (40, 30) if number % 3 else (31, 50)
        Image.new("RGB", size_wh, (17 * number, 250 - 9 * number, 30)).save(path)
        paths.append(path)
    paths[4].write_bytes(b"no picture")
    return paths


def taken(detector, paths, number, *, skip=True, batch_size=1, reporter=None):
    settings = PredictionSettings(threshold=0.0, batch_size=batch_size, skip_bad_images=skip)
    return [one for one, _ in results_of(detector, paths, settings, number, reporter or Silence())]


def assert_same(found, expected, paths):
    assert [one.path for one in found] == [*paths[:4], *paths[5:], paths[4]]
    for a, b in zip(found, expected, strict=True):
        assert (a.path, a.size_wh, a.error) == (b.path, b.size_wh, b.error)
        if b.detections is not None:
            torch.testing.assert_close(a.detections.scores, b.detections.scores)
            torch.testing.assert_close(a.detections.boxes_xyxy, b.detections.boxes_xyxy, rtol=1e-4, atol=1e-3)


def test_several_processes_give_what_one_gives(detector, photos):
    expected = taken(detector, photos, 1)
    assert_same(taken(detector, photos, 2, batch_size=2), expected, photos)


@pytest.mark.slow
def test_a_file_that_cannot_be_read_stops_several_processes_too(detector, photos):
    with pytest.raises(DataError, match=r"04\.png"):
        taken(detector, photos, 2, skip=False)


def _ended(paths, settings):
    os._exit(9)


@pytest.mark.slow
def test_a_process_that_dies_costs_no_image(detector, photos, monkeypatch):
    monkeypatch.setattr(processes, "_detect", _ended)
    reporter = Lines()
    found = taken(detector, photos, 2, reporter=reporter)
    assert_same(found, taken(detector, photos, 1), photos)
    assert "a process has ended" in reporter.said[0]


def test_few_images_and_one_core_need_no_trial(detector, photos, monkeypatch):
    monkeypatch.setattr(processes, "_Trial", None)
    assert len(taken(detector, photos[:11], "auto")) == 11
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert len(taken(detector, photos, "auto")) == 14


def test_the_trial_counts_and_the_order_stays(detector, photos, monkeypatch):
    torch.set_num_threads(2)
    asked = []
    monkeypatch.setattr(processes._Trial, "best_number", lambda self, *given: asked.append(given[:2]) or 1)
    settings, found = PredictionSettings(threshold=0.0, skip_bad_images=True), []
    try:
        for one, _ in results_of(detector, photos, settings, "auto", Silence()):
            assert torch.get_num_threads() == 2  # whoever takes the results has all threads
            found.append(one)
    finally:
        torch.set_num_threads(1)
    assert_same(found, taken(detector, photos, 1), photos)
    assert asked == [(2, 8)]


def test_a_detector_that_cannot_be_copied_is_said_before_the_work(detector, photos, monkeypatch):
    hooked = detector.around(copy.deepcopy(detector.model))
    hooked.model.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"cannot be copied to other processes \(.*lambda.*use processes=1"):
        taken(hooked, photos, 2)
    torch.set_num_threads(2)
    monkeypatch.setattr(processes._Trial, "best_number", lambda *_: 2)
    reporter = Lines()
    try:
        assert len(taken(hooked, photos, "auto", reporter=reporter)) == 14
    finally:
        torch.set_num_threads(1)
    assert reporter.said[0].startswith("a single process after all: this detector cannot be copied")


@pytest.mark.parametrize(
    ("together", "alone", "remaining", "fitting", "number"),
    [
        (1.0, 1.3, 100, 9, 4),
        (1.0, 1.3, 100, 3, 3),
        (1.0, 1.3, 100, 1, 1),
        (1.0, 1.3, 10, 9, 1),  # is done before the processes have started
        (1.0, 3.5, 1000, 9, 1),  # threads share the work as well
    ],
)
def test_processes_must_pay(detector, monkeypatch, together, alone, remaining, fitting, number):
    trial = processes._Trial(detector, [], PredictionSettings())
    trial._seconds = {4: [together, 9.0, together], 1: [alone, alone, 0.0]}
    monkeypatch.setattr(processes, "_fitting", lambda: fitting)
    reporter = Lines()
    assert trial.best_number(4, remaining, reporter) == number
    said = [f"from here on {number} processes with one thread each: an image takes 1.00 s with 4 threads and 1.30 s"]
    assert [line[: len(said[0])] for line in reporter.said] == (said if number > 1 else [])


def test_numbers_out_of_range_and_other_devices_are_refused(detector):
    check_processes("auto", torch.device("cuda"))
    check_processes(1, torch.device("cuda"))
    check_processes(2, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"processes is 2, but the device is cuda"):
        check_processes(2, torch.device("cuda"))
    for number in (0, 257):
        with pytest.raises(ConfigError, match=rf"processes is {number}; it must be in 1\.\.256"):
            check_processes(number, torch.device("cpu"))


def test_results_of_a_process_are_plain_bytes(detector, photos, monkeypatch):
    monkeypatch.setattr(processes, "_detector", detector)
    (result,) = pickle.loads(processes._detect(photos[:1], PredictionSettings(threshold=0.0)))
    assert result.path == photos[0]
    assert len(result.detections) > 0
