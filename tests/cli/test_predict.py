import json

from deformable_detr.data.open import open_dataset


def test_one_json_line_per_image_and_pictures(ddetr, weights, scenes, tmp_path):
    folder = scenes / "val"
    result = ddetr("predict", weights, folder, "--threshold", 0, "--output", tmp_path / "out", "--device", "cpu")
    assert result.code == 0, result.err
    records = [json.loads(line) for line in result.out.splitlines()]
    samples = {str(sample.path): sample for sample in open_dataset(scenes, split="val").samples}
    assert [record["image"] for record in records] == sorted(samples)
    for record in records:
        assert (record["width"], record["height"]) == samples[record["image"]].size_wh
        assert len(record["detections"]) == 33
        assert {"class", "class_id", "category_id", "score", "box_xyxy"} == record["detections"][0].keys()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "scene_00000.jpg",
        "scene_00001.jpg",
        "scene_00002.jpg",
    ]
    assert "3 images done; pictures and detections.json in" in result.err


def test_no_such_image_and_no_such_weights(ddetr, weights, tmp_path):
    result = ddetr("predict", weights, tmp_path / "nope.jpg")
    assert (result.code, result.err) == (1, f"Error: no such image: {tmp_path / 'nope.jpg'}\n")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    result = ddetr("predict", tmp_path / "nope", tmp_path / "a.jpg")
    assert (result.code, "no such checkpoint file" in result.err) == (1, True)


def test_weights_that_are_not_finite_are_one_line(ddetr, nan_weights, scenes, tmp_path):
    """Not "nothing found" in every picture, nor an AP of 0."""
    picture = scenes / "val" / "scene_00000.jpg"
    commands = [
        ("predict", nan_weights, picture, "--threshold", 0),
        ("eval", nan_weights, "--data", scenes),
        ("train", "--data", scenes, "--weights", nan_weights, "--output", tmp_path / "run"),
        ("convert", nan_weights, tmp_path / "out", "--to", "transformers"),
    ]
    for command in commands:
        result = ddetr(*command)
        assert (result.code, result.out) == (1, ""), command
        message = f"Error: {nan_weights}: the weights are not finite, encoder.layers.0.ffn.linear1.weight is the fir"
        assert result.err.splitlines()[-1].startswith(message), command
        assert result.err.count("Error") == 1, command
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_bad_images_stop_it_or_are_counted(ddetr, weights, scenes, tmp_path):
    bad = tmp_path / "a.jpg"
    bad.write_bytes(b"no picture")
    images = (bad, scenes / "val" / "scene_00000.jpg")
    result = ddetr("predict", weights, *images, "--device", "cpu")
    assert (result.code, "a.jpg" in result.err.splitlines()[-1]) == (1, True)
    result = ddetr("predict", weights, *images, "--skip-bad-images", "--device", "cpu")
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert f"skipped: {bad}" in result.err
    assert "1 images done, 1 skipped" in result.err


def test_nothing_found_is_a_line_too(ddetr, weights, scenes):
    result = ddetr("predict", weights, scenes / "val" / "scene_00000.jpg", "--threshold", 1, "--device", "cpu")
    assert json.loads(result.out)["detections"] == []


def test_number_of_processes_is_checked_before_the_work(ddetr, tmp_path):
    for number in ("0", "-1", "two", "1000", "٣"):
        result = ddetr("predict", tmp_path / "nope", tmp_path / "nope.jpg", "--processes", number)
        assert (result.code, "--processes is" in result.err) == (2, True), number
