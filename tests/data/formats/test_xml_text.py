from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.parsing import read_xml
from deformable_detr.data.formats.xml_text import for_parser

XML = '<?xml version="1.0" encoding="{encoding}"?>\n<a><n>{text}</n></a>'


@pytest.mark.parametrize(
    ("declared", "codec", "text"),
    [
        ("GBK", "gbk", "猫和狗"),
        ("gb2312", "gbk", "猫鎔"),
        ("GB18030", "gb18030", "猫𠀀"),
        ("Big5", "big5", "貓"),
        ("Shift_JIS", "shift_jis", "猫"),
        ("euc-jp", "euc_jp", "猫"),
        ("EUC-KR", "euc_kr", "고양이"),
        ("ISO-8859-1", "latin-1", "Kätzchen"),
        ("windows-1251", "cp1251", "кошка"),
        ("koi8-r", "koi8-r", "кошка"),
        ("UTF-8", "utf-8", "猫"),
        ("UTF-8", "utf-8-sig", "猫"),
        ("UTF-16", "utf-16", "猫"),
        ("utf-16", "utf-16-le", "猫"),
        ("utf-16", "utf-16-be", "猫"),
        # Saved otherwise than declared, as programs do that build the text as a string first.
        ("utf-16", "utf-8", "猫"),
        ("utf-16", "utf-8-sig", "猫"),
        ("UTF-32", "utf-32", "猫"),
    ],
)
def test_encodings(declared: str, codec: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(XML.format(encoding=declared, text=text).encode(codec))
    assert read_xml(path).findtext("n") == text


def test_text_that_the_parser_knows_stays_as_it_is() -> None:
    for content in (b"<a/>", b"<?xml version='1.0'?><a/>", b'<?xml version="1.0" encoding="no-such"?><a/>'):
        assert for_parser(content) is content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<a>\n<n>Kätzchen</n></a>".encode("latin-1"), "line 2 is not UTF-8; save the file as UTF-8, or begin it with"),
        (XML.format(encoding="utf-8", text="é").encode("latin-1"), "line 2 is not UTF-8"),
        (XML.format(encoding="GBK", text="猫").encode(), r"line 2: not text in the encoding .* \(gb18030\)"),
        (XML.format(encoding="utf-16", text="é").encode("latin-1"), "line 2: not text in the encoding"),
        (XML.format(encoding="no-such", text="a").encode(), "not usable XML: unknown encoding: no-such"),
        (b"<a><n>salt & pepper</n></a>", "line 1, column 13: not XML: .*; a bare & must be written &amp;"),
        (b"<a><n>\nR&D</n></a>", "line 2, column 4: not XML: .*; a bare & must be written &amp;"),
        (b"<a><n>&nbsp;</n></a>", "not XML: undefined entity; a bare & must be written &amp;"),
        (b"<a><n>&amp;&#233;&#xe9;</m></a>", "not XML: mismatched tag$"),
        ("<a>&</a>".encode("utf-16"), "not XML"),
        (b"<a>\r<n>&\r</n></a>", "not XML"),
    ],
)
def test_reasons(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.xml.*{message}"):
        read_xml(path)
