import json
import shutil

from deformable_detr.core import progress
from deformable_detr.data.open import open_dataset


def test_a_data_set_in_another_format(ddetr, scenes, tmp_path):
    result = ddetr("convert-data", scenes, tmp_path / "out", "--to", "voc")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["output"], record["from"], record["to"]) == (str(tmp_path / "out"), "coco", "voc")
    assert record["classes"] == ["disc", "square", "star"]
    assert [(one["name"], one["images"]) for one in record["splits"]] == [("train", 8), ("val", 3)]
    assert (record["not_kept"], record["mended"]) == ([], {})
    assert f"{tmp_path / 'out'}: COCO as VOC, 3 classes; train with 8 images and " in result.err
    assert open_dataset(tmp_path / "out").source.startswith("VOC")
    assert not open_dataset(tmp_path / "out").samples[0].path.is_symlink()
    linked = ddetr("convert-data", scenes, tmp_path / "links", "--to", "yolo", "--link")
    assert linked.code == 0, linked.err
    assert open_dataset(tmp_path / "links").samples[0].path.is_symlink()


def test_what_is_lost_is_said_and_counted(ddetr, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "in")
    path = tmp_path / "in" / "train" / "_annotations.coco.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    document["annotations"].append(document["annotations"][-1] | {"id": 10_000})
    path.write_text(json.dumps(document))
    (tmp_path / "in" / "val" / "scene_00002.jpg").unlink()
    result = ddetr("convert-data", tmp_path / "in", tmp_path / "out", "--to", "yolo", "--format", "coco")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert [(one["where"], one["message"].partition(":")[0]) for one in record["not_kept"]] == [
        ("split val", f"1 image left out as missing; `ddetr check-data {tmp_path / 'in'}` lists them"),
        ("split train", "1 crowd boxes are written as ordinary objects"),
        ("split train", "19 objects lose their own area"),
        ("split val", "4 objects lose their own area"),
    ]
    assert record["mended"] == {"duplicate_box": 1}
    for line in (
        "not kept: split val: 1 image left out as missing",
        "not kept: split train: 1 crowd boxes are written as ordinary objects",
        "mended or remarked on: 1 duplicate box; `ddetr check-data",
    ):
        assert line in result.err


def test_errors_are_one_line(ddetr, scenes, tmp_path):
    result = ddetr("convert-data", scenes, scenes, "--to", "coco")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"Error: output folder {scenes} is not empty; name another one\n"
    result = ddetr("convert-data", tmp_path, tmp_path / "out", "--to", "coco")
    assert (result.code, "no data set recognised" in result.err, (tmp_path / "out").exists()) == (1, True, False)
    assert ddetr("convert-data", scenes, tmp_path / "out", "--to", "csv").code == 2
    assert ddetr("convert-data", scenes, tmp_path / "out").code == 2


def test_a_bar_appears_if_it_takes_long(ddetr, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_S", -1.0)
    result = ddetr("convert-data", scenes, tmp_path / "out", "--to", "coco")
    assert "writing images" in result.err
