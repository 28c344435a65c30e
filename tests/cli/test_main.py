import errno
import io
import logging
import os
import subprocess
import sys

import pytest

from deformable_detr.cli import main
from deformable_detr.core.errors import DataError
from deformable_detr.core.version import __version__


def test_help_lists_every_command(ddetr):
    result = ddetr("--help")
    assert result.code == 0
    for command in ("train", "eval", "predict", "check-data", "demo", "doctor"):
        assert command in result.out


def test_the_version(ddetr):
    assert ddetr("--version").out.strip() == f"ddetr {__version__}"


def test_an_error_a_user_can_act_on_is_one_line_and_code_1(ddetr, tmp_path):
    result = ddetr("train", "--data", tmp_path / "nope")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"Error: {tmp_path / 'nope'}: no such file or folder\n"


def test_wrong_usage_is_code_2(ddetr):
    assert ddetr("trian").code == 2
    assert ddetr("train", "--no-such-option").code == 2
    assert ddetr("eval").code == 2


@pytest.mark.parametrize("arguments", [("check-data", ""), ("predict", "w", " "), ("eval", "w", "--data", "a\0b")])
def test_an_empty_argument_is_one_line_and_not_the_current_folder(ddetr, arguments):
    result = ddetr(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Error: an argument is empty, or holds a zero character")
    assert result.err.count("\n") == 1


def fail_with(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(main, "app", fail)


def test_errors_of_several_lines_become_one(monkeypatch, capsys):
    fail_with(DataError("first\n  second"), monkeypatch)
    with pytest.raises(SystemExit):
        main.run()
    assert capsys.readouterr().err == "Error: first second\n"


def failing(error, monkeypatch, capsys):
    fail_with(error, monkeypatch)
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_errors_hold_no_codes_for_the_terminal_and_have_an_end(monkeypatch, capsys):
    name = os.fsdecode(b"a\x1b]0;title\x07\xff.jpg")
    said = failing(DataError(f"{name}: no image"), monkeypatch, capsys)
    assert said == "Error: a\\x1b]0;title\\x07\\xff.jpg: no image\n"
    said = failing(DataError("begin" + "\x9b1m" * 10**6 + "way out"), monkeypatch, capsys)
    assert len(said) < 2100
    assert said.startswith("Error: begin\\x9b1m")
    assert said.endswith("way out\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/a\x1b.json"),
            "/data/a\\x1b.json: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; `ulimit -n` shows"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, said, monkeypatch, capsys):
    assert failing(error, monkeypatch, capsys).startswith(f"Error: {said}")


def test_wrong_arguments_are_shown_with_escapes_and_cut(ddetr):
    for arguments in (["tr\x1b[31main"], ["train", "--no\x1b[31m-option"], ["train", "--no" + "\x1b" * 10**5]):
        result = ddetr(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "\x1b" not in result.err
        assert "\\x1b" in result.err
        assert len(result.err) < 6000


def test_names_that_are_no_unicode_can_be_printed_on_any_terminal(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def __init__(self):
            super().__init__(io.BytesIO(), encoding="ascii")

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(main, "app", lambda: out.write("caf\xe9 \udcff"))
    main.run()
    out.flush()
    assert out.buffer.getvalue() == b"caf\\xe9 \\udcff"


def test_bugs_show_their_traceback(monkeypatch):
    fail_with(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main.run()


def test_ctrl_c_is_code_130(monkeypatch):
    fail_with(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 130


@pytest.mark.skipif(os.name == "nt", reason="pipes of the shell")
def test_a_reader_that_has_seen_enough_is_no_error():
    program = (
        "import sys, deformable_detr.cli.main as m\n"
        "def app():\n"
        "    for _ in range(10**5): sys.stdout.write('x' * 100)\n"
        "m.app = app\n"
        "m.run()\n"
    )
    command = f'{sys.executable} -c "{program}" | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers
