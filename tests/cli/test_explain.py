import json

import pytest


@pytest.fixture
def photo(scenes):
    return scenes / "val" / "scene_00000.jpg"


def test_pictures_words_and_json(ddetr, weights, scenes, tmp_path):
    out = tmp_path / "out"
    result = ddetr("explain", weights, scenes / "val", "--threshold", 0, "--top", 2, "--output", out, "--device", "cpu")
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == [
        f"scene_0000{n}{end}" for n in range(3) for end in (".json", "_1_layer2.jpg", "_2_layer2.jpg")
    ]
    lines = result.out.splitlines()
    assert len(lines) == 9
    assert "points carry" in lines[0]
    assert lines[2].endswith("31 more detections, not explained")
    assert "6 detections of 3 images explained; pictures and JSON in" in result.err


def test_json_lines(ddetr, weights, photo):
    options = ("--threshold", 0, "--top", 1, "--json", "--layer", "all", "--size", "effect", "--device", "cpu")
    result = ddetr("explain", weights, photo, *options)
    assert result.code == 0, result.err
    (one,) = json.loads(result.out)["detections"]
    assert [layer["layer"] for layer in one["layers"]] == [1, 2]
    assert all(effect is not None for layer in one["layers"] for *_, effect in layer["points"])


def test_a_place_and_one_layer(ddetr, weights, photo, tmp_path):
    options = ("--at", "10,20", "--threshold", 1, "--layer", 1, "--head", 1, "--level", 0, "--chained")
    result = ddetr("explain", weights, photo, *options, "--output", tmp_path / "out", "--device", "cpu")
    assert result.code == 0, result.err
    assert "No detection at 10,20: " in result.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["scene_00000.json", "scene_00000_1_chained.jpg", "scene_00000_1_layer1.jpg"]


def test_nothing_found_says_what_to_do(ddetr, weights, photo):
    result = ddetr("explain", weights, photo, "--threshold", 1, "--device", "cpu")
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert "nothing found; a lower --threshold" in result.out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--layer", "0"), 2, "--layer is '0'; it must be last, all, or a number from 1 on"),
        (("--layer", "first"), 2, "--layer is 'first'"),
        (("--at", "10"), 2, "--at is '10'; it must be two numbers, such as 320,240"),
        (("--at", "10,nan"), 2, "--at is '10,nan'"),
        (("--layer", "3"), 1, "Error: there is no decoder layer 3: this network has layers 1 to 2"),
        (("--head", "2"), 1, "Error: there is no head 2"),
        (("--at", "9999,1"), 1, "the place 9999,1 is outside the image"),
    ],
)
def test_errors_come_first(ddetr, weights, photo, options, code, message):
    result = ddetr("explain", weights, photo, *options, "--device", "cpu")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    if code == 1:
        assert result.err.count("\n") == 1


def test_no_such_image_and_no_such_weights(ddetr, weights, photo, tmp_path):
    result = ddetr("explain", weights, tmp_path / "nope.jpg")
    assert (result.code, result.err) == (1, f"Error: no such image: {tmp_path / 'nope.jpg'}\n")
    result = ddetr("explain", tmp_path / "nope", photo)
    assert (result.code, "no such checkpoint file" in result.err) == (1, True)
