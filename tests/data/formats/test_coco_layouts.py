import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.coco_layouts import annotation_files
from deformable_detr.data.open import list_splits, open_dataset


def write_json(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name, "width": 50, "height": 30} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(len(names))]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("jsons", "image", "splits"),
    [
        (
            {
                "annotations/instances_train2017.json": "a.png",
                "annotations/instances_val2017.json": "a.png",
                "annotations/captions_val2017.json": "a.png",
            },
            "{split}2017/a.png",
            ("train", "val"),
        ),
        (
            {"annotations/train.json": "a.png", "annotations/test.json": "a.png"},
            "images/{split}/a.png",
            ("train", "test"),
        ),
        (
            {"annotations/train.json": "a.png", "annotations/val.json": "a.png"},
            "{split}/images/a.png",
            ("train", "val"),
        ),
        (
            {"train/_annotations.coco.json": "a.png", "val/_annotations.coco.json": "a.png"},
            "{split}/a.png",
            ("train", "val"),
        ),
        ({"_annotations.coco.json": "a.png"}, "a.png", ("train",)),
        (
            {"coco/train.json": "deep/{split}.png", "coco/val.json": "deep/{split}.png"},
            "deep/{split}.png",
            ("train", "val"),
        ),
        ({"labels.json": "a.png"}, "images/a.png", ("train",)),
        ({"result.json": "../../upload/1/a.png"}, "images/a.png", ("train",)),
        ({"annotations/instances_default.json": "C:\\photos\\a.png"}, "images/a.png", ("train",)),
        ({"train.json": "a.png", "valid.json": "a.png"}, "JPEGImages/a.png", ("train", "val")),
    ],
)
def test_layouts(
    jsons: dict[str, str], image: str, splits: tuple[str, ...], tmp_path: Path, photo: Callable[..., Path]
) -> None:
    for split in splits:
        photo(tmp_path / image.format(split=split))
    for name, file_name in jsons.items():
        split = next((split for split in splits if split in name), splits[0])
        write_json(tmp_path / name, file_name.format(split=split))
    assert list_splits(tmp_path) == splits
    for split in splits:
        dataset = open_dataset(tmp_path, split=split)
        assert dataset.samples[0].path.resolve() == (tmp_path / image.format(split=split)).resolve()
        assert "COCO" in dataset.source


def test_the_folder_of_the_json_and_a_relative_path_will_do(
    tmp_path: Path, photo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "photos/a.png")
    write_json(tmp_path / "coco/train.json", "photos/a.png")
    monkeypatch.chdir(tmp_path / "coco")
    for path in (".", "train.json", "../coco", ".."):
        assert open_dataset(path).samples[0].path == tmp_path / "photos/a.png"


def test_json_that_is_not_coco_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "results.json").write_text('[{"image_id": 3}]')
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/one_picture.json").write_text('{"shapes": []}')
    assert annotation_files(tmp_path) == []
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path)


def test_a_broken_json_where_one_is_expected_is_named(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"train\.json, line 1, column 13: not JSON: .*cut off"):
        open_dataset(tmp_path)


def test_json_of_another_format_is_left_to_that(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "annotations/train.png", (50, 30))
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [3, 4]]}
    document = {"shapes": [shape], "imagePath": "train.png", "file_name": "as COCO says"}
    (tmp_path / "annotations/train.json").write_text(json.dumps(document))
    for path in (tmp_path, tmp_path / "annotations/train.json"):
        assert annotation_files(path) == []
        assert open_dataset(path).source.startswith("LabelMe")
