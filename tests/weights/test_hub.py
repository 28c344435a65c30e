import errno
import os

import pytest
from huggingface_hub import constants

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.weights.hub import fetch

NAME = "SomeOne/some-model"
FILES = {"config.json": b"{}", "preprocessor_config.json": b"{ }", "model.safetensors": b"w" * 3_100_000}


class Notes:
    def __init__(self):
        self.steps = []

    def say(self, line):
        pass

    def update(self, stage, done, total, details=""):
        self.steps.append((stage, done, total))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_settings_and_weights_of_one_commit_are_fetched_once(server, hub):
    hub(NAME, FILES | {"README.md": b"---\nlicense: mit\n---\n"})
    notes = Notes()
    folder = fetch(NAME, reporter=notes)
    assert content(folder) == FILES | {"README.md": b"---\nlicense: mit\n---\n"}
    assert ("asking huggingface.co for SomeOne/some-model", 0, 1) in notes.steps
    assert ("fetching model.safetensors, MB", 3, 3) in notes.steps
    sent = server.sent
    assert fetch(NAME) == folder
    assert server.sent == sent
    # All but the first file is asked for by its commit.
    assert {path for _, path, _ in server.asked if "/main/" in path} == {f"/{NAME}/resolve/main/config.json"}


def test_a_revision_is_what_was_meant(hub):
    hub(NAME, FILES)
    hub(NAME, FILES | {"config.json": b"older"}, revision="v1", commit="a" * 40)
    assert content(fetch(NAME))["config.json"] == b"{}"
    assert content(fetch(NAME, "v1"))["config.json"] == b"older"
    assert fetch(NAME, "a" * 40) == fetch(NAME, "v1")


def test_old_weights_are_taken_where_there_are_no_newer_ones(hub):
    hub(NAME, {"config.json": b"{}", "pytorch_model.bin": b"old"})
    assert content(fetch(NAME)) == {"config.json": b"{}", "pytorch_model.bin": b"old"}


def test_weights_alone_are_a_file(hub):
    hub(NAME, {"model.safetensors": b"ours"})
    assert fetch(NAME).name == "model.safetensors"


@pytest.mark.parametrize("how", ["down", "offline", "error 500"])
def test_what_is_here_needs_no_network(server, hub, how, monkeypatch):
    hub(NAME, {"config.json": b"{}", "model.safetensors": b"w"})  # preprocessing and card are known not to exist
    folder = fetch(NAME)
    if how == "down":
        server.shutdown()
        server.server_close()
    elif how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        server.status.update(dict.fromkeys([*server.files, *server.status], 500))
    assert fetch(NAME) == folder
    with pytest.raises(
        CheckpointError, match=r"config\.json is not in the cache, and huggingface\.co cannot be reached"
    ):
        fetch("SomeOne/other")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            404,
            "RepoNotFound",
            r"huggingface\.co has no model SomeOne/some-model; if it is a private one.*hf auth login",
        ),
        (403, "GatedRepo", r"some-model is gated: accept its terms at https://huggingface\.co/SomeOne/some-model"),
        (404, "RevisionNotFound", r"some-model has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_said(server, hub, status, code, message):
    hub(NAME, FILES, revision="v9")
    path = f"/{NAME}/resolve/v9/config.json"
    server.status[path], server.headers[path] = status, {"X-Error-Code": code}
    with pytest.raises(CheckpointError, match=message):
        fetch(NAME, "v9")


def test_a_model_without_weights_is_said(hub):
    hub(NAME, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        fetch(NAME)


def test_a_download_that_breaks_is_said_and_no_part_of_it_is_taken(server, hub, tmp_path):
    hub(NAME, FILES)
    server.die_after, server.fail_after_death = 100_000, True
    with pytest.raises(CheckpointError, match=r"model\.safetensors of huggingface\.co/.* cannot be fetched: .*502"):
        fetch(NAME)
    assert not list(tmp_path.glob("hub/**/snapshots/*/model.safetensors"))
    server.die_after = None
    server.status = {path: 404 for path, status in server.status.items() if status == 404}
    assert content(fetch(NAME)) == FILES


def test_a_full_disk_is_an_output_error(hub, monkeypatch):
    import huggingface_hub

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OutputError, match=r"No space left on device; HF_HOME names another folder"):
        fetch(NAME)


def test_names_that_cannot_be_are_refused(hub):
    with pytest.raises(CheckpointError, match="cannot be the name of a model"):
        fetch("a--b/c..d")
