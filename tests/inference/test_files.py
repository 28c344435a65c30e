import json

import pytest
from PIL import Image

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.inference.files import find_images, predict_files


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
