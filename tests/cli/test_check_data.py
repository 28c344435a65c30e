import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from deformable_detr.cli import check_data as module
from deformable_detr.cli.check_data import render
from deformable_detr.core import progress
from deformable_detr.core.errors import ConfigError, DataError, OutputError
from deformable_detr.data.check import check_dataset
from deformable_detr.data.formats import coco
from deformable_detr.data.splits import open_training_data
from deformable_detr.runs.recipes import small
from deformable_detr.training.autoconfig import fit_to_data
from tests.data.noise import dataset_of, noise_in_two_splits

app = typer.Typer()
app.command("check-data")(module.check_data)


@app.callback()
def group() -> None:
    """Makes the command one of several, as it is in `ddetr`."""


def call(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(app, ["check-data", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(document))
    return tmp_path


def test_people_read_a_table_on_stderr(folder: Path) -> None:
    result = call(folder)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "COCO, 1 class)" in " ".join(result.stderr.split())  # lines break where the path ends
    assert "OK: no problems." in result.stderr


def test_a_zip_archive(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    away = tmp_path_factory.mktemp("away")
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(away / "cache"))
    archive = shutil.make_archive(str(away / "export"), "zip", folder)
    result = call(archive, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["path"], report["format"]) == (archive, "coco")
    assert report["splits"][0]["source"].endswith(f"unpacked from {archive}")


def test_machines_read_json_on_stdout(folder: Path) -> None:
    result = call(folder, "--json", "--format", "coco")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["splits"][0]["boxes_per_class"] == {"cat": 1}


def test_exit_code_1_if_training_would_stop(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"nonsense")
    for arguments in ([folder], [folder, "--json"]):
        assert call(*arguments).exit_code == 1
    assert call(folder, "--no-decode").exit_code == 0


def test_what_is_no_data_set_is_an_error_for_the_caller(tmp_path: Path) -> None:
    result = call(tmp_path)
    assert isinstance(result.exception, DataError)
    assert call(tmp_path, "--format", "word").exit_code == 2


def test_a_bar_appears_if_it_takes_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_S", -1.0)
    assert "decoding images" in call(folder).stderr
    monkeypatch.setattr(progress, "SILENT_S", 60.0)
    assert "decoding images" not in call(folder).stderr


def test_pictures_as_the_model_sees_them(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    result = call(folder, "--augmented", 3, "--output", picture)
    assert result.exit_code == 0
    assert "3 training images after augmentation" in result.stderr
    with Image.open(picture) as sheet:
        first = sheet.convert("RGB").tobytes()
    assert call(folder, "--augmented", 3, "--augment", "strong", "--output", picture).exit_code == 0
    with Image.open(picture) as sheet:
        assert sheet.convert("RGB").tobytes() != first


def test_no_pictures_of_what_cannot_be_trained_on(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"nonsense")
    result = call(folder, "--augmented", 3, "--output", tmp_path / "seen.png")
    assert result.exit_code == 1
    assert "no picture" in result.stderr
    assert not (tmp_path / "seen.png").exists()


def test_options_of_a_picture_that_is_not_asked_for(folder: Path) -> None:
    for arguments in (["--augment", "light"], ["--output", "x.png"]):
        result = call(folder, *arguments)
        assert result.exit_code == 2
        assert "--augmented 12" in " ".join(result.stderr.split())
    assert isinstance(call(folder, "--augmented", 1, "--augment", "lihgt").exception, ConfigError)


def test_what_no_picture_can_come_of_is_said_before_images_are_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deformable_detr.data.check.check_dataset", lambda *_, **__: pytest.fail("too late"))
    for arguments in (["--output", tmp_path], ["--augment", "lihgt"], ["--recipe", "smal"]):
        result = call(folder, "--augmented", 1, *arguments)
        assert isinstance(result.exception, OutputError if "--output" in arguments else ConfigError)


def text_of(folder: Path) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(render(check_dataset(folder)))
    return stream.getvalue()


def test_the_tables_of_a_sound_data_set(tmp_path: Path) -> None:
    text = text_of(noise_in_two_splits(tmp_path))
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert ["images", "3", "1"] in rows
    assert ["width, px", "200 .. 200", "200 .. 200"] in rows
    assert ["per image: fewest, median, most", "0  1  3", "2  2  2"] in rows
    assert ["medium", "1", "1"] in rows
    assert ["dog", "2", "2"] in rows
    assert "OK: no problems." in text


def test_what_stops_training_is_counted_and_shown(tmp_path: Path) -> None:
    folder = noise_in_two_splits(tmp_path)
    damaged = folder / "images/train/0.png"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    Image.new("RGB", (99, 77)).save(folder / "images/train/2.png")
    text = text_of(folder)
    assert "Not usable as it is: 2 problems would stop training." in text
    assert "images/train/0.png: cannot decode" in text


def test_a_remark_is_no_problem(tmp_path: Path) -> None:
    folder = noise_in_two_splits(tmp_path)
    Image.new("RGB", (9, 8)).save(folder / "images/val/extra.jpg")
    assert "OK: 1 remark, nothing that stops training." in text_of(folder)


def test_a_data_set_without_a_split_that_can_be_read(tmp_path: Path) -> None:
    folder = noise_in_two_splits(tmp_path)
    for split in ("train", "val"):
        (folder / f"annotations/{split}.json").write_text("{")
    text = text_of(folder)
    assert "Not usable" in text
    assert "(COCO)" in text
    assert "Boxes per class" not in text


def test_long_lists_are_shortened_for_people(tmp_path: Path) -> None:
    folder = noise_in_two_splits(tmp_path)
    for number in range(8):
        Image.new("RGB", (9, 8), (number, 0, 0)).save(folder / f"images/val/extra[{number}].jpg")
    text = text_of(folder)
    assert "extra[4].jpg" in text
    assert "extra[5].jpg" not in text
    assert "... and 3 more; --json lists all" in text


def test_a_leak_is_the_headline(tmp_path: Path) -> None:
    folder = noise_in_two_splits(tmp_path)
    (folder / "images/val/0.png").write_bytes((folder / "images/train/1.png").read_bytes())
    text = text_of(folder)
    assert "Warning, split val: all 1 images are training images, too: AP on them rewards what was remembered" in text
    assert "Nothing stops training, but see 1 warning above, 1 remark." in text
    assert "OK:" not in text
    result = call(folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["problem_counts"]["leak"] == 1


def test_a_recipe_says_how_many_objects_can_be_learnt(tmp_path: Path) -> None:
    boxes = [(0, (x, y, x + 6, y + 6)) for x in range(0, 180, 8) for y in range(0, 136, 8)]
    folder = tmp_path / "data"
    for count, queries in ((101, 200), (40, 100), (20, None)):
        coco.save(dataset_of(tmp_path / str(count), boxes[:count]), folder, split="train")
        text = " ".join(call(folder).stderr.split())
        assert (f"Queries: recipe small would train with {queries}." in text) is (queries is not None)
        assert "more objects than the" not in text.replace("more objects than the 100 detections", "")
    coco.save(dataset_of(tmp_path / "again", boxes[:40]), folder, split="train")
    text = " ".join(call(folder, "--recipe", "demo").stderr.split())
    assert "more objects than the 30 queries of recipe demo, up to 40: 10 of 40" in text
    assert "train with --set model.num_queries=100" in text
    text = " ".join(call(folder, "--recipe", "paper_r50").stderr.split())
    assert "Queries: recipe paper_r50 would train with 300." in text
    assert "queries" not in text


def test_a_recipe_that_starts_from_weights_has_the_queries_of_those(tmp_path: Path) -> None:
    boxes = [(0, (x, y, x + 6, y + 6)) for x in range(0, 180, 8) for y in range(0, 136, 8)]
    folder = tmp_path / "data"
    coco.save(dataset_of(tmp_path / "a", boxes[:330]), folder, split="train")
    text = " ".join(call(folder, "--recipe", "finetune").stderr.split())
    assert "Queries" not in text
    assert "queries" not in text
    assert "more objects than the 100 detections" in text


@pytest.mark.parametrize(("fullest", "expected"), [(0, 200), (7, 100)])
def test_queries_are_those_of_the_images_that_a_training_keeps(tmp_path: Path, fullest: int, expected: int) -> None:
    """Without a validation split, a tenth is held out: of ten images the one with index 7."""
    boxes = [(0, (x, y, x + 6, y + 6)) for x in range(0, 180, 8) for y in range(0, 136, 8)]
    images = [boxes[: 101 if index == fullest else 40 + index] for index in range(10)]
    folder = tmp_path / "data"
    coco.save(dataset_of(tmp_path / "a", *images), folder, split="train")
    config = small()
    share, seed = config.data.val_share, config.run.seed
    kept = open_training_data(folder, val_share=share, seed=seed, skip_bad_images=False).train
    assert fit_to_data(config, kept).config.model.num_queries == expected
    text = " ".join(call(folder, "--no-decode").stderr.split())
    assert f"Queries: recipe small would train with {expected}." in text
    # With a split to judge by, all are kept.
    coco.save(dataset_of(tmp_path / "b", boxes[:3]), folder, split="val")
    assert "would train with 200." in " ".join(call(folder, "--no-decode").stderr.split())


def test_splits_that_a_training_would_refuse_have_no_number_of_queries(tmp_path: Path) -> None:
    boxes = [(1, (x, y, x + 6, y + 6)) for x in range(0, 180, 8) for y in range(0, 136, 8)]
    folder = tmp_path / "data"
    cats = dataset_of(tmp_path / "a", [(0, boxes[0][1])] * 40)
    coco.save(replace(cats, classes=("cat",), category_ids=(1,)), folder, split="train")
    coco.save(dataset_of(tmp_path / "b", boxes[:40]), folder, split="val")
    result = call(folder, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["problem_counts"]["unknown_class"] == 1
    assert report["num_queries"] is None


def test_reading_that_takes_long_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    @contextmanager
    def wait(doing: str) -> Iterator[None]:
        waits.append(doing)
        yield
        waits.append("over")

    monkeypatch.setattr("deformable_detr.core.progress.shown_wait", wait)
    monkeypatch.setattr("deformable_detr.data.check.repeated_images", lambda *_: waits.append("compared") or [])
    assert call(folder).exit_code == 0
    assert waits == [f"reading the annotations of {folder}", "over", "compared"]
