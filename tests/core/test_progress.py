import io
import threading
import time

import pytest
from rich.console import Console

from deformable_detr.core import progress
from deformable_detr.core.progress import (
    Reporter,
    Silence,
    TerminalReporter,
    duration,
    memory_in_use,
    percent,
    shown_wait,
)


def test_durations():
    assert [duration(s) for s in (0.0, 59.6, 61.0, 3599.4, 3600.0, 36_061.0)] == [
        "0:00",
        "1:00",
        "1:01",
        "59:59",
        "1:00:00",
        "10:01:01",
    ]


def test_memory_is_that_of_a_python_process():
    assert 2**20 < memory_in_use() < 2**40


def test_elsewhere_than_on_a_terminal_there_are_whole_lines_now_and_then(monkeypatch):
    file = io.StringIO()
    clock = iter([0.0, 1.0, 31.0, 31.0, 40.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with TerminalReporter(Console(file=file, force_terminal=False, width=20)) as reporter:
        reporter.update("epoch 1/2", 1, 9, "loss 3")
        reporter.update("epoch 1/2", 5, 9, "loss 2 and so on, longer than the console is wide")
        reporter.update("epoch 1/2", 6, 9, "loss 1")
        reporter.say("[1, 2] is not markup")
    assert file.getvalue() == (
        "epoch 1/2 5/9 loss 2 and so on, longer than the console is wide\n[1, 2] is not markup\n"
    )


def test_on_a_terminal_there_is_a_bar_and_lines_above_it():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, color_system=None)
    with TerminalReporter(console) as reporter:
        reporter.update("epoch 1/2", 1, 9, "loss 3")
        reporter.say("a line [that] stays")
        reporter.update("evaluating", 2, 4, "fast, and much else, of which nothing is lost on a narrow one")
    shown = file.getvalue()
    assert "a line [that] stays" in shown
    assert "evaluating" in shown
    assert "2/4" in shown
    assert "nothing is lost" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("is_terminal", "shown"), [(True, "reading [all] of it"), (False, "reading [all] of it 0:00\n")]
)
def test_a_wait_of_unknown_length_is_shown_after_a_while(monkeypatch, is_terminal, shown):
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=60, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    monkeypatch.setattr(progress, "SILENT_S", 0.0)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.01)
    with shown_wait("reading [all] of it"):
        deadline = time.monotonic() + 5
        while shown not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert shown in file.getvalue()
    monkeypatch.setattr(progress, "SILENT_S", 60.0)
    before = file.getvalue()
    with pytest.raises(KeyError), shown_wait("a short one"):
        raise KeyError
    assert file.getvalue() == before
    assert not {thread.name for thread in threading.enumerate()} & {"a short one", "reading [all] of it"}


@pytest.mark.parametrize("reporter", [Silence(), TerminalReporter(Console(file=io.StringIO()))])
def test_both_are_reporters(reporter):
    assert isinstance(reporter, Reporter)
    reporter.update("stage", 1, 2)
    reporter.say("line")


def test_percent_has_a_dash_for_what_is_not_in_the_data():
    assert [percent(share) for share in (0.4376, 0.0, 1.0, -1.0)] == ["43.8", "0.0", "100.0", "-"]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_is_said_holds_no_codes_and_has_an_end(is_terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=40, color_system=None)
    with TerminalReporter(console) as reporter:
        reporter.say("skipped: a\x1b[31mb\n.jpg" + "x" * 10**6)
    shown = file.getvalue()
    assert "a\\x1b[31mb\\n.jpgxxx" in shown
    assert shown.count("x") < 2100


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_terminal_that_is_closed_ends_nothing(is_terminal, monkeypatch):
    class Closed(io.StringIO):
        gone = False

        def write(self, text, /):
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Closed()
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    with TerminalReporter(Console(file=file, force_terminal=is_terminal, width=40)) as reporter:
        reporter.update("epoch 1/2", 1, 9, "loss 3")
        file.gone = True
        reporter.update("epoch 1/2", 2, 9, "loss 2")
        reporter.say("stopped and saved")


def test_a_bar_is_shown_of_what_lasts(capsys, monkeypatch):
    for silent_s, is_shown in ((60.0, False), (-1.0, True)):
        monkeypatch.setattr(progress, "SILENT_S", silent_s)
        with progress.shown_progress("writing images") as on_progress:
            on_progress(2, 5)
        assert ("writing images" in capsys.readouterr().err) is is_shown
