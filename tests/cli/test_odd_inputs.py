"""Options and names that nobody means: one line and exit code 1 or 2, never a traceback, nothing left behind."""

import os

import pytest

LONG = "x" * 5000
ODD_NAMES = ["", "\0", LONG, "-", "~nobody-of-this-name/x", "/dev/zero", "no/such/file.safetensors", "a\x1b[2Jb"]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Empty folder to run commands in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def check(result, folder):
    assert result.code in (1, 2), result.err
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert "Traceback" not in result.err
    assert all(len(line) <= 2100 for line in lines)
    assert all(line.isprintable() for line in lines)
    if result.code == 1:
        assert lines[-1].startswith("Error: ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "{}", "a.jpg"),
        ("eval", "{}", "--data", "photos"),
        ("check-data", "{}"),
        ("train", "--data", "{}"),
        ("train", "--resume", "{}"),
        ("report", "{}"),
        ("convert", "{}", "out.pth"),
        ("convert-data", "{}", "out", "--to", "coco"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_odd_names(ddetr, empty, command, name):
    check(ddetr(*(name if word == "{}" else word for word in command)), empty)


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", "-1"),
        ("--seed", str(2**70)),
        ("--epochs", str(10**12)),
        ("--epochs", "0"),
        ("--batch-size", str(10**9)),
        ("--batch-size", "9" * 5000),
        ("--image-size", "100000"),
        ("--image-size", "0"),
        ("--lr", "nan"),
        ("--lr", "-1"),
        ("--workers", "-3"),
        ("--set", "optimizer.lr=" + "9" * 5000),
        ("--set", "model.num_queries=" + "[" * 5000),
        ("--set", "model.backbone=hf-hub:timm/resnet18"),
        ("--set", "model.hidden_dim=" + str(10**9)),
        ("--set", "no.such=1"),
        ("--set", ""),
        ("--device", "cuda:99"),
        ("--device", LONG),
        ("--recipe-of-nobody",),
    ],
    ids=lambda options: " ".join(options)[:40],
)
def test_odd_options_of_train(ddetr, scenes, empty, options):
    check(ddetr("train", "--data", str(scenes), "--backbone-weights", "none", *options), empty)


@pytest.mark.parametrize(
    "options",
    [("--threshold", "nan"), ("--threshold", "2"), ("--batch-size", "9" * 5000), ("--max-detections", "0")],
    ids=lambda options: " ".join(options)[:30],
)
def test_odd_options_of_predict(ddetr, empty, options):
    check(ddetr("predict", "no.safetensors", "a.jpg", *options), empty)


def test_a_pipe_in_the_place_of_every_file_is_not_waited_for(ddetr, empty, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for command in (
        ("predict", str(pipe), "a.jpg"),
        ("check-data", str(pipe)),
        ("train", "--data", str(pipe)),
        ("train", "--resume", str(pipe)),
    ):
        check(ddetr(*command), empty)
