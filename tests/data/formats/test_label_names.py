import unicodedata
from pathlib import Path

import pytest

from deformable_detr.data.formats.label_names import files_by_name, match_labels, near_misses

IMAGES, LABELS = Path("images"), Path("labels")


def images(*names: str) -> list[Path]:
    return [IMAGES / name for name in names]


def labels(*names: str) -> list[Path]:
    return [LABELS / name for name in names]


def test_label_files_by_stem() -> None:
    label_of, problems = match_labels(images("a.png", "b.c.jpg", "c.png"), labels("a.txt", "b.c.txt", "z.txt"))
    assert label_of == {IMAGES / "a.png": LABELS / "a.txt", IMAGES / "b.c.jpg": LABELS / "b.c.txt"}
    assert [(problem.kind, problem.where, problem.fatal) for problem in problems] == [
        ("orphan_annotation", str(LABELS / "z.txt"), False)
    ]


def test_label_files_by_whole_name() -> None:
    label_of, problems = match_labels(images("a.png", "a.jpg"), labels("a.png.json", "a.jpg.json"), by_whole_name=True)
    assert label_of == {IMAGES / "a.png": LABELS / "a.png.json", IMAGES / "a.jpg": LABELS / "a.jpg.json"}
    assert not problems
    _, (problem,) = match_labels(images("a.png"), labels("a.json"), by_whole_name=True)
    assert problem.fatal
    assert "rename it to 'a.png.json'" in problem.message


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_ending_of_a_label_and_the_form_of_letters_do_not_matter(form: str) -> None:
    image = IMAGES / f"{unicodedata.normalize(form, 'müñé')}.png"
    other = "NFD" if form == "NFC" else "NFC"
    label = LABELS / f"{unicodedata.normalize(other, 'müñé')}.TXT"
    assert match_labels([image], [label]) == ({image: label}, [])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("A.png", "a.txt"),
        ("a.png", "a.png.txt"),
        ("a.png.png", "a.txt"),
        ("a.JPG", "a.jpg.xml"),
        ("a.png", " a.txt"),
        ("a.png", "a .txt"),
        ("a .png", "a.txt"),
        ("my photo.png", "my_photo.txt"),
        ("my photo.png", "my%20photo.txt"),
        ("img-1.png", "IMG_0001.txt"),
        ("stra\u00dfe.png", "STRASSE.txt"),
        ("a.png", "a.txt.txt"),
    ],
)
def test_names_that_nearly_agree_stop(image: str, label: str) -> None:
    label_of, (problem,) = match_labels(images(image, "o.png"), labels(label, "o.txt"))
    assert label_of == {IMAGES / "o.png": LABELS / "o.txt"}
    assert (problem.kind, problem.where, problem.fatal) == ("orphan_annotation", str(LABELS / label), True)
    assert f"nearly that of the image {image!r}" in problem.message
    assert f"rename it to {Path(image).stem + Path(label).suffix!r}" in problem.message


@pytest.mark.parametrize(
    ("image", "label"),
    [("a.png", "b.txt"), ("a1.png", "a2.txt"), ("a_jpg.rf.12ab.jpg", "a.txt"), ("10.png", "1.txt"), ("a.png", ".txt")],
)
def test_other_names_are_only_told(image: str, label: str) -> None:
    label_of, (problem,) = match_labels(images(image), labels(label))
    assert not label_of
    assert problem.message == "no image has this name: ignored"
    assert not problem.fatal


def test_an_image_that_has_its_label_is_not_near_to_another() -> None:
    label_of, (problem,) = match_labels(images("a.png"), labels("A.txt", "a.txt"))
    assert label_of == {IMAGES / "a.png": LABELS / "a.txt"}
    assert (problem.where, problem.fatal) == (str(LABELS / "A.txt"), False)


def test_twins_stop() -> None:
    label_of, (problem,) = match_labels(images("a.jpg", "a.png"), labels("a.txt"))
    assert not label_of
    assert (problem.kind, problem.where, problem.fatal) == ("duplicate_image", str(LABELS / "a.txt"), True)
    assert "the images 'a.jpg', 'a.png' share this label file" in problem.message
    label_of, (problem,) = match_labels(images("a.jpg"), labels("a.TXT", "a.txt"))
    assert not label_of
    assert problem.fatal
    assert "'a.TXT', 'a.txt' all belong to the image 'a.jpg'" in problem.message


def test_images_that_are_not_read_keep_their_labels() -> None:
    files = images("a.jpg", "a.png", "b.jpg", "C.jpg")
    label_of, problems = match_labels(files, labels("a.txt", "b.txt", "c.txt"), used=images("a.png"))
    assert label_of == {IMAGES / "a.png": LABELS / "a.txt"}
    assert [(problem.where, problem.fatal) for problem in problems] == [
        (str(LABELS / "a.txt"), False),
        (str(LABELS / "c.txt"), False),
    ]
    assert "read for the image 'a.png'; 'a.jpg' has the same stem" in problems[0].message


def test_names_are_shared_by_stem_or_with_the_ending() -> None:
    files = images("a.jpg", "a.png")
    assert files_by_name(files) == {"a": files}
    assert files_by_name(files, with_ending=True) == {"a.jpg": files[:1], "a.png": files[1:]}


def test_nothing_is_near_to_nothing() -> None:
    assert near_misses([], labels("a.txt")) == []
