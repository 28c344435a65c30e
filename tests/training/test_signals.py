import os
import signal
import threading

import pytest

from deformable_detr.training import signals
from deformable_detr.training.signals import Terminated, answer, held, terminable, uninterrupted

ENDING = [pytest.param(number, id=number.name) for number in signals._ENDING]


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


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_it_is_raised_at_once_or_after_the_block(number):
    with pytest.raises(Terminated) as raised, terminable():
        send(number)
    assert raised.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL
    done = []

    def block():
        with terminable(), uninterrupted():
            send(number)
            done.append("finished")

    with pytest.raises(Terminated) as raised:
        block()
    assert raised.value.number == number
    assert done == ["finished"]
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("number", ENDING)
def test_the_same_signal_passed_on_by_a_launcher_is_one(number):
    done = []

    def block():
        with terminable():
            try:
                with uninterrupted():
                    for one in (number, *signals._ENDING):  # some send several kinds at once
                        send(one)
            finally:
                for one in signals._ENDING:
                    send(one)
                done.append("saved")

    with pytest.raises(Terminated):
        block()
    assert done == ["saved"]
    assert all(signal.getsignal(one) is signal.SIG_DFL for one in signals._ENDING)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("inside", [True, False])
def test_another_one_later_on_ends_the_process_at_once(inside, number, monkeypatch):
    monkeypatch.setattr(signals, "_SAME_ONE_S", -1.0)
    child = os.fork()
    if child == 0:
        try:
            with terminable():
                try:
                    with uninterrupted():
                        send(number)
                        if inside:
                            send(number)
                except Terminated:
                    with uninterrupted():
                        send(number)
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


@pytest.mark.parametrize("number", ENDING)
def test_what_others_handle_or_ignore_is_left_alone(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("theirs"))
    try:
        with terminable(), uninterrupted():
            send(number)
        assert seen == ["theirs"]
        signal.signal(number, signal.SIG_IGN)  # as nohup does with SIGHUP
        with terminable(), held() as arrived:
            send(number)
        assert arrived == []
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_of_several_signals_those_that_end_come_first():
    answer([])
    with pytest.raises(Terminated) as raised:
        answer([signal.SIGINT, signal.SIGTERM])
    assert raised.value.number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt) as interrupted:
        answer([signal.SIGINT])
    assert not isinstance(interrupted.value, Terminated)
