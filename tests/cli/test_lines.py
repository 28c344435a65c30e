import io
import sys

import pytest

from deformable_detr.cli.lines import tell


def test_a_line_for_people_goes_to_standard_error_and_holds_no_codes(capsys: pytest.CaptureFixture[str]) -> None:
    tell("skipped: a\x1b[2Jb\n.jpg")
    assert capsys.readouterr() == ("", "skipped: a\\x1b[2Jb\\n.jpg\n")


def test_a_closed_terminal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    tell("nobody is there")
