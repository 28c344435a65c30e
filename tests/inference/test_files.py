import json
import os

import pytest
from PIL import Image

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.inference.files import find_images, passed_over, predict_files


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name, size_wh in (("b/one.png", (40, 30)), ("a/one.png", (40, 30)), ("c.JPG", (31, 50))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_wh, (9, 90, 30)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_files_folders_and_patterns_each_once(photos):
    assert names(find_images([str(photos)]), photos) == ["a/one.png", "b/one.png", "c.JPG"]
    assert names(find_images([str(photos / "*" / "*.png")]), photos) == ["a/one.png", "b/one.png"]
    assert names(find_images([str(photos / "**" / "*.png")]), photos) == ["a/one.png", "b/one.png"]
    given = [str(photos / "c.JPG"), str(photos), str(photos / "c.*")]
    assert names(find_images(given), photos) == ["c.JPG", "a/one.png", "b/one.png"]


@pytest.mark.parametrize(
    "pattern", ["", " ", "-", "\0", "a\0b/*", "x" * 5000, "?" * 5000, "~nobody-has-this-name/a.jpg", "[", "a/" * 2000]
)
def test_odd_names_are_no_images(pattern):
    with pytest.raises(DataError, match="no such image"):
        find_images([pattern])


def test_pictures_of_other_formats_are_counted_and_said(photos):
    for name in ("a/IMG_2.CR2", "IMG_1.dng", ".hidden.nef"):
        (photos / name).write_bytes(b"II*\0")
    assert len(find_images([str(photos)])) == 3
    assert passed_over([str(photos)]) == "left out: 2 pictures of formats that are not read (IMG_1.dng, IMG_2.CR2)"
    assert passed_over([str(photos / "b"), str(photos / "c.JPG")]) == ""
    for path in photos.rglob("*.*[gG]"):
        path.unlink()
    with pytest.raises(DataError, match=r"no images in the folder .*, only a picture of formats .*\(IMG_2\.CR2\)"):
        find_images([str(photos)])


@pytest.mark.parametrize("pattern", ["nope.jpg", "*.webp", "empty", "a/*/*"])
def test_what_means_no_image_is_an_error(photos, pattern):
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such image|no images in the folder"):
        find_images([str(photos), str(photos / pattern)])


def test_names_with_brackets_are_files_before_they_are_patterns(photos):
    (photos / "c.JPG").rename(photos / "[c].JPG")
    assert names(find_images([str(photos / "[c].JPG")]), photos) == ["[c].JPG"]


def test_results_come_in_order_with_pictures_and_a_coco_file(detector, photos, tmp_path):
    paths = find_images([str(photos)])
    results = list(predict_files(detector, paths, output=tmp_path / "out", threshold=0.0, batch_size=2))
    assert [result.path for result in results] == paths
    assert [result.size_wh for result in results] == [(40, 30), (40, 30), (31, 50)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "c.jpg",
        "detections.json",
        "one-2.jpg",
        "one.jpg",
    ]
    with Image.open(tmp_path / "out" / "c.jpg") as picture:
        assert picture.size == (31, 50)
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [str(path) for path in paths]
    assert document["categories"] == [
        {"id": i, "name": n, "supercategory": ""} for i, n in enumerate(detector.classes, start=1)
    ]
    assert len(document["annotations"]) == 99
    first, record = document["annotations"][0], results[0].record()
    box = record["detections"][0]["box_xyxy"]
    assert first["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]], abs=0.02)
    assert first["score"] == pytest.approx(record["detections"][0]["score"], abs=1e-4)
    assert len({annotation["id"] for annotation in document["annotations"]}) == 99


def test_the_same_as_detector_predict(detector, photos):
    paths = find_images([str(photos)])
    for result, found in zip(
        predict_files(detector, paths, threshold=0.0), detector.predict(paths, threshold=0.0), strict=True
    ):
        assert result.detections.scores.tolist() == pytest.approx(found.scores.tolist(), abs=1e-4)


def test_bad_files_stop_it_or_are_results_with_an_error(detector, photos):
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n")
    paths = find_images([str(photos)])
    with pytest.raises(DataError, match=r"bad\.png"):
        list(predict_files(detector, paths))
    results = list(predict_files(detector, paths, skip_bad_images=True, batch_size=3))
    assert len(results) == 4
    assert [result.path.name for result in results if result.error] == ["bad.png"]


def test_photos_are_never_replaced(detector, photos):
    with pytest.raises(OutputError, match="holds the images themselves"):
        next(predict_files(detector, find_images([str(photos)]), output=photos / "a" / ".." / "a"))


def test_a_folder_that_cannot_be_written_is_said_before_the_work(detector, photos):
    with pytest.raises(OutputError, match=r"cannot write to the output folder .*notes\.txt"):
        next(predict_files(detector, find_images([str(photos)]), output=photos / "notes.txt"))


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be")
def test_written_names_hold_no_codes_and_differ(detector, photos, tmp_path):
    odd = [
        b"a\x1b[31m\n.png",
        b"caf\xe9.png",
        b"x" * 251 + b".png",
        "\u202egpj.exe.png".encode(),
        b"ONE.png",
        b"one-2.png",
    ]
    for name in odd:
        Image.new("RGB", (40, 30)).save(photos / os.fsdecode(name))
    paths = find_images([str(photos)])
    results = list(predict_files(detector, paths, output=tmp_path / "out", threshold=0.9))
    assert len(results) == 9
    written = sorted(path.name for path in (tmp_path / "out").glob("*.jpg"))
    assert len({name.casefold() for name in written}) == 9
    assert all(name.isprintable() for name in written)
    assert {"a%x1b[31m%n.jpg", "caf%xe9.jpg", "%u202egpj.exe.jpg", "x" * 200 + ".jpg", "one-2-2.jpg"} <= set(written)
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [str(path) for path in paths]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_where_a_picture_should_be_written_is_refused(detector, photos, tmp_path):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "c.jpg")
    with pytest.raises(OutputError, match=r"cannot write .*c\.jpg: it is a device or a pipe"):
        list(predict_files(detector, [photos / "c.JPG"], output=tmp_path / "out"))


def test_a_picture_wider_than_a_jpeg_can_be_is_drawn_smaller(detector, tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (70_000, 3)).save(path)
    (result,) = predict_files(detector, [path], output=tmp_path / "out", threshold=0.0)
    assert result.size_wh == (70_000, 3)
    with Image.open(tmp_path / "out" / "wide.jpg") as picture:
        assert picture.size == (65_500, 3)
