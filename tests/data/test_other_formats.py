"""All formats that are only read: what their tools write comes back as it was, and none is taken for another."""

import builtins
import importlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import DataError
from deformable_detr.core.format_names import FormatName
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.formats.visdrone import CLASSES
from deformable_detr.data.images import read_image
from deformable_detr.data.open import recognise
from tests.data.written_others import WRITERS

SAVED = {"coco": coco, "yolo": yolo, "voc": voc}
# What the writers cannot hold: crowd regions; what becomes of a region without a class; boxes between pixels.
WITHOUT_CROWDS = {"dota", "supervisely"}
CROWD_OF_EACH_CLASS = {"kitti"}


@pytest.mark.parametrize("name", WRITERS)
def test_what_tools_write_comes_back(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    path = WRITERS[name](drawn, tmp_path / "there")
    assert recognise(path).format == name
    assert list_splits(path) == ("train",)
    dataset = open_dataset(path, format=name)
    assert dataset.source.startswith(name.upper())
    assert dataset.source.endswith("split train")
    assert [problem for problem in dataset.problems if problem.kind != "unannotated_image"] == []
    written = dict(zip(("z", "a", "z_2"), drawn.samples, strict=True))
    assert {sample.path.stem for sample in dataset.samples} <= set(written)
    for sample in dataset.samples:
        expected = written[sample.path.stem]
        assert sample.size_wh == expected.size_wh
        single = ~expected.is_crowd if name not in WITHOUT_CROWDS else np.ones(len(expected.is_crowd), dtype=bool)
        found = sample.boxes_xyxy[~sample.is_crowd]
        tolerance = 1.0 if name in ("visdrone", "supervisely") else 1e-9
        assert np.abs(found - expected.boxes_xyxy[single]).max(initial=0) <= tolerance
        names = [drawn.classes[class_id] for class_id in expected.class_ids[single]]
        if name == "visdrone":
            names = [CLASSES[class_id] for class_id in expected.class_ids[single]]
        assert [dataset.classes[class_id] for class_id in sample.class_ids[~sample.is_crowd]] == names
        num_crowd = int(expected.is_crowd.sum()) * (len(dataset.classes) if name in CROWD_OF_EACH_CLASS else 1)
        assert sample.is_crowd.sum() == (0 if name in WITHOUT_CROWDS else num_crowd)


def test_every_format_has_its_line() -> None:
    assert set(WRITERS) < set(get_args(FormatName))


@pytest.mark.parametrize("name", [*SAVED, *WRITERS])
def test_none_is_taken_for_another(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    if name in SAVED:
        SAVED[name].save(drawn, tmp_path / "there")
    else:
        WRITERS[name](drawn, tmp_path / "there")
    for other in {*SAVED, *WRITERS} - {name}:
        assert reader_of(other).find_splits(tmp_path / "there") == {}, other


def reader_of(name: str) -> Any:
    return importlib.import_module(f"deformable_detr.data.formats.{name}")


@pytest.mark.parametrize("name", WRITERS)
def test_rejecting_a_folder_does_not_read_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("", "annotations", "labels", "label_2", "labelTxt", "ann", "img", "images", "train"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number in range(60):
            for ending, text in {".txt": "no annotation", ".json": "[]", ".csv": "a,b\n1,2", ".jsonl": "{}"}.items():
                (tmp_path / folder / f"{number}{ending}").write_text(text)
    opened = 0
    original = builtins.open

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal opened
        opened += 1
        return original(*arguments, **options)

    monkeypatch.setattr(builtins, "open", counting)
    assert reader_of(name).find_splits(tmp_path) == {}
    assert opened <= 150


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_empty_or_strange(name: str, tmp_path: Path) -> None:
    reader = reader_of(name)
    assert reader.find_splits(tmp_path / "nowhere") == {}
    (tmp_path / "file.bin").write_bytes(b"\0" * 50)
    assert reader.find_splits(tmp_path / "file.bin") == {}
    with pytest.raises(DataError, match="Looked for"):
        open_dataset(tmp_path, format=name)


@pytest.mark.parametrize("name", WRITERS)
def test_turned_photographs(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    """Boxes are those of the picture as displayed, unless the annotations have the size of the stored one."""
    path = WRITERS[name](drawn, tmp_path / "there")
    (image,) = path.rglob("z_2.jpg")  # displayed as 40 x 90
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (90, 40), (9, 9, 9)).save(image, exif=turned)
    (sample,) = [one for one in open_dataset(path).samples if one.path == image]
    assert sample.size_wh == (40, 90)
    assert np.array_equal(sample.boxes_xyxy <= (40, 90, 40, 90), np.ones_like(sample.boxes_xyxy, dtype=bool))
    assert read_image(sample).size == (40, 90)


def test_stored_pictures_that_are_displayed_turned(drawn: DetectionDataset, tmp_path: Path) -> None:
    for name in ("datumaro", "supervisely"):
        path = WRITERS[name](drawn, tmp_path / name)
        (image,) = path.rglob("z_2.jpg")
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.new("RGB", (40, 90), (9, 9, 9)).save(image, exif=turned)
        (sample,) = [one for one in open_dataset(path).samples if one.path == image]
        assert sample.size_wh == read_image(sample).size == (40, 90)
