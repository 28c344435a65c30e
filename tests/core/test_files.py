import os
import stat

import pytest

from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import (
    check_folder,
    check_output_file,
    write_atomically,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*file: No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_mode_the_umask_gives(tmp_path):
    (tmp_path / "ordinary").touch()

    def write_privately(temporary):
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))

    write_atomically(tmp_path / "file", write_privately)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    linked = tmp_path / "link"
    linked.symlink_to(pipe)
    for path, what in ((pipe, "a device or a pipe"), (linked, "a device or a pipe"), (folder, "a folder")):
        with pytest.raises(OutputError, match=f"{path.name}: it is {what}, .* name a file"):
            write_atomically(path, lambda temporary: temporary.write_text("new"))
        with pytest.raises(OutputError, match=f"{path.name}: it is {what}"):
            check_output_file(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    check_output_file(tmp_path / "new" / "folder" / "file")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "taken").touch()
    check_output_file(tmp_path / "taken")
    with pytest.raises(OutputError, match=r"cannot write .*file: it is no folder: .*taken$"):
        check_output_file(tmp_path / "taken" / "file")


def test_json_for_people(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1,\n    2\n  ]\n}\n'


def test_text_is_the_same_bytes_everywhere(tmp_path):
    path = tmp_path / "text"
    write_text(path, "été\nb\n")
    assert path.read_bytes() == b"\xc3\xa9t\xc3\xa9\nb\n"
    with pytest.raises(OutputError, match=r"cannot write .*text: a name in it is not valid Unicode"):
        write_text(path, "\udcff")
    assert path.read_bytes() == b"\xc3\xa9t\xc3\xa9\nb\n"
    write_text(path, "\udcff", errors="backslashreplace", durable=False)
    assert path.read_bytes() == b"\\udcff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_put_in_place_and_leaves_what_it_links_to_alone(tmp_path):
    original, path = tmp_path / "original", tmp_path / "link"
    original.write_text("mine")
    original.chmod(0o600)

    def link(temporary):
        temporary.unlink()
        temporary.symlink_to(original)

    for durable in (True, False):
        write_atomically(path, link, durable=durable)
        assert path.is_symlink()
        assert path.read_text() == "mine"
    assert stat.S_IMODE(original.stat().st_mode) == 0o600


def test_long_names_have_room_for_what_is_temporary(tmp_path):
    path = tmp_path / ("é" * 120 + ".jpg")
    write_text(path, "x")
    assert path.read_text() == "x"


def test_a_folder_that_cannot_be_written(tmp_path):
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        check_folder(tmp_path / "gone")
