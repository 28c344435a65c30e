import json

import pytest

from deformable_detr.weights import read


@pytest.fixture
def output(tmp_path):
    return tmp_path / "copy.safetensors"


def test_what_was_written_is_said_to_people_and_as_json(ddetr, weights, output, tiny_config):
    result = ddetr("convert", weights, output, "--to", "ours")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["output"] == str(output)
    assert (record["layout"], record["model"].split(",")[0], record["classes"]) == ("ours", "two_stage", 3)
    assert record["tensors"] == len(read(weights).weights)
    assert record["lost"] == []
    assert f"{record['parameters']:,} parameters, 3 classes, licence not said; all" in result.err
    assert read(output).provenance["converted_from"].endswith("weights.safetensors")


def test_what_is_lost_is_said(ddetr, weights, tmp_path):
    result = ddetr("convert", weights, tmp_path / "theirs", "--to", "transformers")
    assert result.code == 0, result.err
    assert "lost, because the layout has no place for it: " in result.err
    assert "provenance" in json.loads(result.out)["lost"]


def test_errors_are_one_line(ddetr, weights, output):
    result = ddetr("convert", weights, output, "--to", "ours", "--sha256", "0" * 64)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert "is not the file that was meant" in result.err
    assert not output.exists()
    assert ddetr("convert", weights, output).code == 2
    assert ddetr("convert", weights, weights, "--to", "ours").code == 1
