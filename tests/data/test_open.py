from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.open import recognise_format


@pytest.fixture
def all_forms(drawn: DetectionDataset, tmp_path: Path) -> Path:
    """One folder that holds the same images in all three formats."""
    for module in (voc, yolo, coco):
        module.save(drawn, tmp_path / "all", split="train", images="link")
    coco.save(drawn.subset([0]), tmp_path / "all", split="val")
    return tmp_path / "all"


def test_formats_have_an_order_and_can_be_chosen(all_forms: Path) -> None:
    assert recognise_format(all_forms) == "coco"
    dataset = open_dataset(all_forms)
    assert dataset.source.startswith("COCO")
    assert dataset.source.endswith("train.json, split train; the folder also holds YOLO and VOC")
    assert list_splits(all_forms) == ("train", "val")
    for name in ("yolo", "voc"):
        assert open_dataset(all_forms, format=name).source.startswith(name.upper())
        assert list_splits(all_forms, format=name) == ("train",)


def test_a_format_that_is_not_read_may_be_broken(all_forms: Path) -> None:
    (all_forms / "data.yaml").write_text("a: [")
    assert len(open_dataset(all_forms)) == 3
    assert len(open_dataset(all_forms, format="voc")) == 3
    with pytest.raises(DataError, match="not YAML"):
        open_dataset(all_forms, format="yolo")


def test_splits_by_any_of_their_names(all_forms: Path) -> None:
    for name in ("val", "valid", "val2017"):
        assert len(open_dataset(all_forms, split=name)) == 1
    with pytest.raises(DataError, match="no split 'test'; this COCO data set has train, val"):
        open_dataset(all_forms, split="test")


def test_the_first_split_if_none_is_train(drawn: DetectionDataset, tmp_path: Path) -> None:
    for split in ("test", "val"):
        coco.save(drawn, tmp_path / "out", split=split)
    assert ", split val" in open_dataset(tmp_path / "out").source


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", "\0", "x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(DataError, match="no such file or folder"):
            open_dataset(path)


def test_nothing_recognised_lists_what_was_looked_for(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "a.png", tmp_path / "notes.txt"):
        with pytest.raises(DataError, match=r"no data set recognised here. Looked for COCO: .*; YOLO: .*; VOC: "):
            list_splits(path)
    with pytest.raises(DataError, match="Looked for VOC: ") as caught:
        open_dataset(tmp_path, format="voc")
    assert "COCO" not in str(caught.value)


def test_folders_within_folders(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "out/one/two")
    assert len(open_dataset(tmp_path / "out")) == 3
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/again").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path / "loop")
