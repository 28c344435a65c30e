import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data import open as opening
from deformable_detr.data.check import check_dataset
from deformable_detr.data.convert import convert_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, json_kinds, parsing, voc, yolo
from deformable_detr.data.open import recognise
from deformable_detr.data.splits import open_for_evaluation, read_splits
from tests.data import written


@pytest.fixture
def all_forms(drawn: DetectionDataset, tmp_path: Path) -> Path:
    """One folder that holds the same images in all three formats."""
    for module in (voc, yolo, coco):
        module.save(drawn, tmp_path / "all", split="train", images="link")
    coco.save(drawn.subset([0]), tmp_path / "all", split="val")
    return tmp_path / "all"


def test_formats_have_an_order_and_can_be_chosen(all_forms: Path) -> None:
    assert recognise(all_forms).format == "coco"
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


def test_nothing_recognised_says_what_is_there(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "cam/b.png")
    for name in ("x.md", "y.md", "strange\n.bin"):
        (tmp_path / name).write_text("")
    found = r"found the folders cam/, 1 image, x\.md and 1 more \.md, strange\\n\.bin\. Known formats are coco, yolo"
    with pytest.raises(DataError, match="no data set recognised here: " + found):
        list_splits(tmp_path)
    for path, there in (("a.png", r"it is one file, 'a\.png'"), ("cam", "found 1 image"), ("x.md", "it is one file")):
        with pytest.raises(DataError, match=f"no data set recognised here: {there}"):
            list_splits(tmp_path / path)
    (tmp_path / "cam/b.png").unlink()
    with pytest.raises(DataError, match=r"here: found nothing\. "):
        list_splits(tmp_path / "cam")
    with pytest.raises(DataError, match=r"of this format here: found the folders cam/, .*Looked for VOC: ") as caught:
        open_dataset(tmp_path, format="voc")
    assert "COCO" not in str(caught.value)


def test_a_data_set_beside_other_folders(drawn: DetectionDataset, tmp_path: Path) -> None:
    voc.save(drawn, tmp_path / "all/VOC2007")
    for name in ("scripts", "papers", ".git", "__MACOSX"):
        (tmp_path / "all" / name).mkdir()
    dataset = open_dataset(tmp_path / "all")
    assert len(dataset) == 3
    assert "VOC2007" in dataset.source
    coco.save(drawn, tmp_path / "all/second")
    with pytest.raises(DataError, match="several data sets are here: VOC in VOC2007/, COCO in second/; give"):
        open_dataset(tmp_path / "all")
    assert open_dataset(tmp_path / "all", format="coco").source.startswith("COCO")


def test_folders_within_folders(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "out/one/two")
    assert len(open_dataset(tmp_path / "out")) == 3
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/again").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path / "loop")


def test_an_export_of_label_studio_is_yolo(tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Its notes.json has the categories of COCO, and nothing else of it."""
    names = ["Red Velvet", "Chocolate Cake", "Jam Coated"]
    for number in range(3):
        photo(tmp_path / f"images/{number}.jpg", shade=number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{number}.txt").write_text(f"{number} 0.5 0.5 0.2 0.4\n" * (number + 1))
    (tmp_path / "classes.txt").write_text("\n".join(names))
    notes = {"categories": [{"id": n, "name": name} for n, name in enumerate(names)], "info": {"version": "1.0"}}
    (tmp_path / "notes.json").write_text(json.dumps(notes, indent=2))
    dataset = open_dataset(tmp_path)
    assert dataset.source.startswith("YOLO")
    assert "also holds" not in dataset.source
    assert (dataset.classes, len(dataset), dataset.num_objects) == (tuple(names), 3, 6)


SAVED: dict[str, Callable[..., object]] = {
    "coco": coco.save, "yolo": yolo.save, "voc": voc.save, "csv": written.write_csv, "labelme": written.write_labelme,
    "cvat": written.write_cvat, "via": written.write_via, "createml": written.write_createml,
    "labelstudio": written.write_labelstudio,
}  # fmt: skip


def three_splits(name: str, drawn: DetectionDataset, folder: Path) -> Path:
    for split in ("train", "val", "test"):
        if name in ("coco", "yolo", "voc"):
            SAVED[name](drawn, folder, split=split)
        else:
            SAVED[name](drawn, folder / split)
    return folder


class Counted:
    """Stands for a function of a path and counts its calls by path."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.counts: Counter[str] = Counter()

    def __call__(self, path: str | Path, *arguments: object, **options: object) -> object:
        self.counts[str(path)] += 1
        return self.function(path, *arguments, **options)


@pytest.mark.parametrize("name", SAVED)
def test_each_file_is_read_once_for_all_splits(
    name: str, drawn: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = three_splits(name, drawn, tmp_path / "out")
    read, looked_at = Counted(parsing.read_file), Counted(json_kinds.open_file)
    monkeypatch.setattr(parsing, "read_file", read)
    monkeypatch.setattr(json_kinds, "open_file", looked_at)
    assert list(check_dataset(folder, decode=False).splits) == ["train", "val", "test"]
    lists = {str(folder / one) for one in ("classes.txt", "data.yaml")}  # a line for each class
    counts = {count for path, count in read.counts.items() if path not in lists}
    # In an xml of CVAT, its subsets are looked for before it is parsed.
    assert counts == {2 if name == "cvat" else 1}
    assert set(looked_at.counts.values()) <= {1}


def test_a_data_set_is_recognised_once(
    drawn: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = three_splits("coco", drawn, tmp_path / "out")
    recognised = Counted(opening._formats_in)
    monkeypatch.setattr(opening, "_formats_in", recognised)
    for work in (check_dataset, read_splits, lambda path: open_for_evaluation(path, None, None, False)):
        recognised.counts.clear()
        work(folder)
        assert recognised.counts == {str(folder): 1}
    recognised.counts.clear()
    convert_dataset(folder, tmp_path / "voc", to="voc")
    assert sorted(recognised.counts.values()) == [1, 1]  # what is read, and what was written


@pytest.mark.parametrize("name", SAVED)
def test_files_that_change_are_read_anew(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    """Also where neither their sizes nor their times tell."""
    folder = three_splits(name, drawn, tmp_path / "out")
    assert "zebra" in open_dataset(folder, split="val").classes
    for file in (path for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".xml", ".txt", ".yaml")):
        status = file.stat()
        file.write_bytes(file.read_bytes().replace(b"zebra", b"sheep"))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "sheep" in open_dataset(folder, split="val").classes


def test_what_was_recognised_answers_for_itself(all_forms: Path) -> None:
    found = recognise(all_forms)
    assert (found.format, found.splits, found.others) == ("coco", ("train", "val"), ("yolo", "voc"))
    assert len(found.open(strict=True)) == 3
    assert len(found.open("val2017", strict=True)) == 1
