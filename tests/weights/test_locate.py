import hashlib
from pathlib import Path

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.locate import Located, locate, weights_file

CONTENT = b"weights" * 1000
HASH = hashlib.sha256(CONTENT).hexdigest()
NAME = "SomeOne/some-model"
FILES = {"config.json": b"{}", "model.safetensors": CONTENT}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "photos" / "best.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_itself(file, kind):
    assert locate(kind(file)) == Located(file, "photos/best.safetensors")
    assert locate(kind(file.parent)).path == file.parent


def test_an_address_and_its_hash(server):
    server.files["/best.safetensors"] = CONTENT
    address = server.address + "/best.safetensors"
    for located in (locate(address), locate(f"{address}#sha256={HASH.upper()}"), locate(address, sha256=HASH)):
        assert located.path.read_bytes() == CONTENT
        assert located.origin == address
    with pytest.raises(CheckpointError, match=r"two SHA-256 that differ"):
        locate(f"{address}#sha256={HASH}", sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"'abc' is no SHA-256; it has 64 hexadecimal digits"):
        locate(f"{address}#sha256=abc")


def test_a_name_on_the_hub_its_page_and_its_revisions(hub):
    hub(NAME, FILES)
    located = locate(NAME)
    assert (located.path / "model.safetensors").read_bytes() == CONTENT
    assert located.origin == f"{NAME}@{located.path.name}"
    assert locate(f"https://huggingface.co/{NAME}") == locate(f"https://huggingface.co/{NAME}/tree/main") == located
    hub(NAME, FILES | {"config.json": b"1"}, revision="v1.0", commit="b" * 40)
    assert locate(f"{NAME}@v1.0").origin == f"{NAME}@{'b' * 40}"


def test_a_path_comes_before_a_name(hub, server, tmp_path, monkeypatch):
    hub(NAME, FILES)
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    assert locate(NAME).path == Path(NAME)
    assert server.asked == []


def test_what_is_nowhere_says_that_both_were_tried(hub, server):
    server.status["/runs/small-1/resolve/main/config.json"] = 404
    path = "/runs/small-1/resolve/main/config.json"
    server.headers[path] = {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(
        CheckpointError, match=r"no file or folder runs/small-1 is here, and .*has no model runs/small-1"
    ):
        locate("runs/small-1")


@pytest.mark.parametrize("name", ["runs/best.safetensors", "a/b.PTH", "best", "a/b/c", "./a/b", "~/a", "a b/c"])
def test_what_can_only_be_a_path_is_asked_for_nowhere(hub, server, name):
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        locate(name)
    assert server.asked == []


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x.pth", "a\0b", "x/" * 3000])
def test_names_that_no_disk_can_have_are_one_line(hub, server, name):
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        locate(name)
    assert server.asked == []


def test_a_hash_holds_wherever_the_weights_are(file, hub, tmp_path):
    hub(NAME, FILES)
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(CONTENT)
    for source in (file, run, NAME):
        locate(source, sha256=HASH)
        with pytest.raises(CheckpointError, match=f"its SHA-256 is {HASH}, not {'0' * 64}"):
            locate(source, sha256="0" * 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no weights in it to compare"):
        locate(tmp_path / "empty", sha256=HASH)


def test_the_file_that_counts_in_a_folder(tmp_path):
    assert weights_file(tmp_path) is None
    for name in ("pytorch_model.bin", "model.safetensors", "last.safetensors", "best.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert weights_file(tmp_path) == tmp_path / name
