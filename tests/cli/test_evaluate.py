import json
import shutil

import pytest


def test_a_table_for_people(ddetr, weights, scenes):
    result = ddetr("eval", weights, "--data", scenes, "--workers", 0, "--device", "cpu")
    assert (result.code, result.out) == (0, "")
    for word in ("ap50", "ar_large", "disc", "star", "3 images,"):
        assert word in result.err


def test_json_for_machines(ddetr, weights, scenes):
    result = ddetr("eval", weights, "--data", scenes, "--split", "train", "--workers", 0, "--json", "--device", "cpu")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["images"], record["skipped_images"]) == (8, 0)
    assert record["detections"] == 8 * 33
    assert len(record["metrics"]) == 12
    assert set(record["per_class"]) == {"disc", "square", "star"}


@pytest.mark.parametrize("missing", [False, True])
def test_bad_images_stop_it_or_are_counted(ddetr, weights, scenes, tmp_path, missing):
    shutil.copytree(scenes, tmp_path / "data")
    bad = tmp_path / "data" / "val" / "scene_00001.jpg"
    if missing:
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:700])
    options = ("eval", weights, "--data", tmp_path / "data", "--workers", 0, "--device", "cpu")
    result = ddetr(*options)
    assert (result.code, "scene_00001.jpg" in result.err.splitlines()[-1]) == (1, True)
    result = ddetr(*options, "--skip-bad-images", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["images"], record["skipped_images"]) == (2, 1)


def test_other_classes_are_one_line(ddetr, weights, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    path = tmp_path / "data" / "val" / "_annotations.coco.json"
    path.write_text(path.read_text().replace('"disc"', '"dish"'))
    result = ddetr("eval", weights, "--data", tmp_path / "data", "--workers", 0, "--device", "cpu")
    assert result.code == 1
    assert "the checkpoint has 3 classes (disc, square, star), the data set has 3 classes (dish" in result.err


def test_more_detections_may_count(ddetr, weights, scenes):
    options = ("eval", weights, "--data", scenes, "--workers", 0, "--device", "cpu", "--json")
    for more, counted, detections in (([], 100, 33), (["--max-detections", 12], 12, 12)):
        record = json.loads(ddetr(*options, *more).out)
        assert (record["max_detections"], record["detections"]) == (counted, 3 * detections)
    assert ddetr(*options, "--max-detections", 10).code == 2


def test_what_is_not_coco_s_is_not_called_so(ddetr, weights, scenes):
    options = ("eval", weights, "--data", scenes, "--workers", 0, "--device", "cpu")
    usual, more = (json.loads(ddetr(*options, "--json", *extra).out) for extra in ((), ("--max-detections", 12)))
    assert usual["at_max_detections"] is None
    assert more["metrics"] == usual["metrics"]  # of 100 detections, whatever is asked for besides
    assert more["per_class"] == usual["per_class"]
    own = more["at_max_detections"]
    assert own["metrics"].keys() ^ usual["metrics"].keys() == {"ar_12", "ar_100"}
    assert own["metrics"] != usual["metrics"]
    assert own["per_class"].keys() == usual["per_class"].keys()
    text = " ".join(ddetr(*options, "--max-detections", 12).err.split())
    assert "Not COCO's: 12 detections of an image (pycocotools: params.maxDets = [1, 10, 12])" in text
    assert text.index("COCO's numbers") < text.index("ar_100") < text.index("Not COCO's") < text.index("ar_12")
    assert "Not COCO's" not in ddetr(*options).err


def test_no_such_split(ddetr, weights, scenes):
    result = ddetr("eval", weights, "--data", scenes, "--split", "test")
    assert (result.code, "no split 'test'" in result.err) == (1, True)
