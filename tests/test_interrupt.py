import os
import signal
import threading

import pytest

from deformable_detr.interrupt import uninterrupted


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
