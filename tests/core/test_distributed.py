"""Who a process is among others, and what they tell each other: several processes on this machine, talking by gloo."""

import json
import os

import pytest

from deformable_detr.core import distributed
from deformable_detr.core.distributed import ALONE, Ranks, joined
from deformable_detr.core.errors import ConfigError
from tests.processes import Group


def talk(folder):
    """Write down what this process hears from the others."""
    with joined("cpu") as ranks:
        told = {
            "me": (ranks.rank, ranks.size, ranks.local_rank),
            "total": ranks.total(1.0, float(ranks.rank)),
            "gathered": ranks.gathered("abc"[ranks.rank]),
            "largest": ranks.largest((4, 9, 2)[ranks.rank]),
            "from_first": ranks.from_first(("of", ranks.rank)),
            "share": ranks.share_of([10, 11, 12, 13]),
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(told))


def test_alone_everything_is_ones_own():
    assert ALONE.is_first
    assert ALONE.total(2.0, 3.0) == [2.0, 3.0]
    assert ALONE.gathered("x") == ["x"]
    assert ALONE.largest(7) == 7
    assert ALONE.from_first("y") == "y"
    assert ALONE.share_of([1, 2, 3]) == [1, 2, 3]
    assert ALONE.device("auto") == "auto"


@pytest.mark.parametrize(("length", "size"), [(8, 2), (7, 3), (2, 3), (0, 2), (5, 5)])
def test_shares_are_the_batch_in_order_and_nearly_equal(length, size):
    batch = list(range(length))
    shares = [Ranks(rank, size).share_of(batch) for rank in range(size)]
    assert [one for share in shares for one in share] == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_of_several_has_a_gpu_of_its_own(monkeypatch):
    third = Ranks(6, 8, 2, together=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert third.device("auto") == third.device("cuda") == "cuda:2"
    assert third.device("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert third.device("auto") == "cpu"


@pytest.mark.slow
def test_processes_tell_each_other(tmp_path):
    with Group(3, talk, tmp_path, folder=tmp_path / "group") as processes:
        assert processes.wait() == 0, processes.said
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [one["me"] for one in told] == [[0, 3, 0], [1, 3, 1], [2, 3, 2]]
    assert [one["total"] for one in told] == [[3.0, 3.0]] * 3
    assert [one["gathered"] for one in told] == [["a", "b", "c"]] * 3
    assert [one["from_first"] for one in told] == [["of", 0]] * 3
    assert [one["share"] for one in told] == [[10, 11], [12], [13]]
    assert [one["largest"] for one in told] == [9, 9, 9]


def test_without_torchrun_one_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined() as ranks:
        assert ranks is ALONE


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANK", "")
    with pytest.raises(ConfigError, match=r"RANK='', WORLD_SIZE='1', .* each must be a number"), joined():
        pass
    distributed.check_started(1)
    with pytest.raises(ConfigError, match="--devices is 4, but WORLD_SIZE=1 in the environment"):
        distributed.check_started(4)


def test_a_stop_leaves_time_to_save(monkeypatch):
    seen = []

    def launch(config, command):
        from torch.distributed.launcher.api import LaunchConfig

        assert isinstance(config, LaunchConfig)
        seen.append(os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        return lambda *_: None

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", launch)
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    assert distributed.start(2, ["train"]) == 0
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert distributed.start(2, ["train"]) == 0
    assert seen == ["7", "600"]
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")  # `start` has set it itself: taken back at the end


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start several"), joined():
        pass
