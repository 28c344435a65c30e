import json
import os
import stat

import pytest

from deformable_detr.errors import ConfigError, OutputError
from deformable_detr.run_folder import (
    RunFolder,
    check_output_file,
    create_run_folder,
    new_run_path,
    open_run_folder,
    read_json,
    write_atomically,
    write_json,
)


def test_new_runs_are_numbered(tmp_path):
    assert new_run_path(tmp_path, "small", "my cats") == tmp_path / "small-my_cats-1"
    (tmp_path / "small-my_cats-1").mkdir()
    assert new_run_path(tmp_path, "small", "my cats").name == "small-my_cats-1"  # empty: free
    (tmp_path / "small-my_cats-1" / "config.json").touch()
    assert new_run_path(tmp_path, "small", "my cats").name == "small-my_cats-2"
    assert new_run_path(tmp_path, "small", "").name == "small-1"


def test_a_folder_must_be_empty_and_writable(tmp_path):
    folder = create_run_folder(tmp_path / "a" / "b")
    assert list(folder.path.iterdir()) == []
    (folder.path / "x").touch()
    with pytest.raises(OutputError, match=r"is not empty; name another$"):
        create_run_folder(folder.path)
    folder.last.touch()
    with pytest.raises(OutputError, match=r"is not empty; .*--resume"):
        create_run_folder(folder.path)
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        create_run_folder(folder.path / "x")
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        create_run_folder(folder.path / "x" / "below a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        create_run_folder(tmp_path)


def test_only_a_run_can_be_resumed(tmp_path):
    with pytest.raises(OutputError, match="no such run folder"):
        open_run_folder(tmp_path / "nope")
    with pytest.raises(OutputError, match=r"it has no last\.safetensors"):
        open_run_folder(tmp_path)
    (tmp_path / "last.safetensors").touch()
    assert open_run_folder(tmp_path) == RunFolder(tmp_path)


def test_a_run_without_anything_to_show_is_taken_back_and_no_other(tmp_path):
    failed, learnt = create_run_folder(tmp_path / "failed"), create_run_folder(tmp_path / "learnt")
    for folder in (failed, learnt):
        folder.config.touch()
        folder.data.touch()
        folder.transfer.touch()
    learnt.log({"step": 10})
    failed.take_back()
    learnt.take_back()
    assert not failed.path.exists()
    assert len(list(learnt.path.iterdir())) == 4


def test_a_line_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    RunFolder(tmp_path).metrics.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*metrics\.jsonl"):
        RunFolder(tmp_path).log({"step": 1})


def test_lines_of_steps_to_be_taken_again_are_forgotten(tmp_path):
    folder = RunFolder(tmp_path)
    folder.forget_after(3, 0)  # nothing there yet
    for step in (1, 2, 3, 4):
        folder.log({"step": step})
    with folder.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    folder.forget_after(2, 0)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


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
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    with pytest.raises(ConfigError, match="cannot read"):
        read_json(tmp_path)
