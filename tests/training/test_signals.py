import os
import signal
import threading

import pytest

from deformable_detr.training import signals
from deformable_detr.training.signals import Terminated, terminable, uninterrupted


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_block_finishes_first():
    done = []

    def block():
        with uninterrupted():
            ctrl_c()
            ctrl_c()
            done.append("finished")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["finished"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_nothing_happens():
    with uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_comes_through():
    with pytest.raises(ValueError, match="own"), uninterrupted():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_are_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("theirs"))
    try:
        with uninterrupted():
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["theirs"]


def test_other_threads_may_use_it():
    done = []

    def work():
        with uninterrupted():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_raised_at_once_or_after_the_block():
    with pytest.raises(Terminated), terminable():
        sigterm()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done = []

    def block():
        with terminable(), uninterrupted():
            sigterm()
            done.append("finished")

    with pytest.raises(Terminated):
        block()
    assert done == ["finished"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_same_sigterm_passed_on_by_a_launcher_is_one():
    done = []

    def block():
        with terminable():
            try:
                with uninterrupted():
                    sigterm()
                    sigterm()
            finally:
                sigterm()
                done.append("saved")

    with pytest.raises(Terminated):
        block()
    assert done == ["saved"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("inside", [True, False])
def test_a_sigterm_later_on_ends_the_process_at_once(inside, monkeypatch):
    monkeypatch.setattr(signals, "_SAME_ONE_S", -1.0)
    child = os.fork()
    if child == 0:
        try:
            with terminable():
                try:
                    with uninterrupted():
                        sigterm()
                        if inside:
                            sigterm()
                except Terminated:
                    with uninterrupted():
                        sigterm()
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_sigterm_of_others_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with terminable(), uninterrupted():
            sigterm()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"]
