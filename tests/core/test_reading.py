import os
import socket
import threading

import pytest

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import json_value, open_file, read_file, read_json, settings_value, shallow


def test_only_files_are_opened(tmp_path):
    pipe, linked, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    linked.symlink_to(pipe)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (pipe, linked, "/dev/zero", tmp_path / "socket"):
            with pytest.raises(OSError, match="pipe or a device, not a file"):
                open_file(path)
    with pytest.raises(OSError, match="a folder, not a file"):
        open_file(folder)
    with pytest.raises(ValueError, match="null"):
        open_file("a\0b")
    (tmp_path / "file").write_bytes(b"12345")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"12345"


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    as_it_was = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: as_it_was)
    refused = []

    def read():
        with pytest.raises(OSError, match="not a file"):
            open_file(path)
        refused.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert refused == [True]


def test_files_have_a_largest_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, most=5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, and no such file has more than 4"):
        read_file(path, most=4)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # of a terabyte nothing is read but the beginning
    with pytest.raises(OSError, match="it has 1,099,511,627,776 bytes"):
        read_file(path, most=100)


def test_what_is_nested_too_deeply_is_no_settings():
    for text in ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting value"):
            json_value(text)
    assert settings_value("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="nested too deeply"):
        settings_value("[" * 102 + "]" * 102)


def test_depth_of_values_that_stand_in_many_places():
    value: list = []
    for _ in range(90):
        value = [value] * 10  # ten to the ninety lists, if each were looked at
    assert shallow(value)
    within = [1]
    within.append(within)
    assert not shallow(within)


def test_settings_are_no_millions_of_lists():
    for text in ("[" + "[]," * 200_000 + "0]", b'{"a": [' + b"{}," * 200_000 + b"0]}"):
        with pytest.raises(ValueError, match="more than 200,000 lists and objects"):
            settings_value(text)
    assert len(settings_value("[" + "[]," * 100_000 + "0]")) == 100_001
    for deepest in (99, 101):
        value = 0
        for level in range(deepest):
            value = {"a": value, "b": 0} if level % 2 else [[], value]
        assert shallow(value, shared=False) is shallow(value) is (deepest < 100)


def test_json_of_settings(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    with pytest.raises(ConfigError, match=r"cannot read .*: it is a folder"):
        read_json(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 5000)
    with pytest.raises(ConfigError, match=r"deep\.json is not valid JSON: its values are nested too deeply"):
        read_json(tmp_path / "deep.json")


def test_json_that_belongs_to_others_is_their_error(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"x\.json holds a JSON list"):
        read_json(tmp_path / "x.json", error_type=CheckpointError)
