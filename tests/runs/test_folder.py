import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from deformable_detr.core.errors import OutputError
from deformable_detr.runs.folder import RunFolder, create_run_folder, new_run_folder, open_run_folder


def test_new_runs_are_numbered(tmp_path):
    assert new_run_folder(tmp_path / "runs", "small", "my cats").path == tmp_path / "runs" / "small-my_cats-1"
    # Still empty, but the run that asked for it is about to write there.
    assert new_run_folder(tmp_path / "runs", "small", "my cats").path.name == "small-my_cats-2"
    assert new_run_folder(tmp_path / "runs", "small", "").path.name == "small-1"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        new_run_folder(tmp_path / "file", "small", "")


def test_of_runs_that_start_at_once_each_has_a_folder(tmp_path):
    with ThreadPoolExecutor(16) as threads:
        folders = list(threads.map(lambda _: new_run_folder(tmp_path, "small", "cats").path, range(64)))
    assert len(set(folders)) == 64


def test_one_run_has_a_folder_that_two_found_empty(tmp_path):
    first, second = create_run_folder(tmp_path), create_run_folder(tmp_path)
    first.claim()
    with pytest.raises(OutputError, match=r"another run has begun in .* in the meantime; name another folder"):
        second.claim()
    second.leave()
    assert first.config.exists()
    first.take_back()
    assert not tmp_path.exists()


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
    assert open_run_folder(tmp_path).path == tmp_path


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
    for epoch in (1, 2):
        for step in (1, 2, 3):
            folder.log({"kind": "step", "epoch": epoch, "step": 3 * epoch - 3 + step})
        folder.log({"kind": "epoch", "epoch": epoch, "step": 3 * epoch})
    whole = folder.metrics.read_text().splitlines()
    with folder.metrics.open("a") as file:
        file.write('{"step": 7, "lo')

    def left(step, epoch):
        folder.forget_after(step, epoch)
        return folder.metrics.read_text().splitlines()

    assert left(6, 2) == whole
    assert left(6, 1) == whole[:-1]  # not yet evaluated
    assert left(5, 1) == whole[:6]
    # Going on with other data: fewer steps an epoch, or more. Completed epochs stay, the one under way begins anew.
    assert left(2, 1) == left(0, 1) == whole[:4]
