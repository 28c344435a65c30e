"""The benchmark of models of transformers compares before it measures, and reports it whole."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.model import bench_transformers as bench


def test_it_reports_both_models(capsys):
    bench.main(["tiny", "--rounds", "2"])
    shown = capsys.readouterr()
    content = json.loads(shown.out.splitlines()[-1])
    assert content["baseline"] == "transformers"
    assert content["seconds"]["tiny"].keys() == {"transformers", "accelerated"}
    assert all(seconds["median"] > 0 and seconds["runs"] == 2 for seconds in content["seconds"]["tiny"].values())
    assert all(0 <= difference < 1e-4 for difference in content["differences"]["tiny"].values())
    assert {"backend", "transformers", "threads", "torch", "processor"} <= content.keys()
    assert "accelerated" in shown.err


def test_models_that_differ_stop_it():
    theirs, ours, images = bench.prepare(bench.CASES["tiny"], 1, "cpu")
    for name, parameter in ours.named_parameters():
        if name.endswith("sampling_offsets.bias"):
            parameter.data.add_(0.5 * torch.randn(parameter.shape))
    with pytest.raises(AssertionError, match="outputs differ by"):
        bench.compare(theirs, ours, images)
