"""Encodings of XML files, and reasons why a text is no XML, in the words of people who write annotations."""

import codecs
import re
from xml.etree.ElementTree import ParseError

_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]{1,40})["']""")
# The parser knows Unicode and encodings of one byte for each letter, but none of these.
_SEVERAL_BYTES = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030"), "gb18030"),
    **{name: name for name in ("big5", "big5hkscs", "cp950", "cp949", "euc_kr", "johab", "iso2022_kr")},
    **{name: name for name in ("shift_jis", "shift_jis_2004", "cp932", "euc_jp", "euc_jis_2004", "iso2022_jp")},
}
_BARE_AMPERSAND = re.compile(rb"&(?!(?:amp|lt|gt|quot|apos|#[0-9]+|#x[0-9a-fA-F]+);)")


def for_parser(content: bytes) -> bytes | str:
    """Content of an XML file as the parser can read it: text, where it does not know the declared encoding.

    Raises:
        UnicodeDecodeError: it is not text in the encoding that it declares.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32")
    declared = _declared_encoding(content)
    if declared in _SEVERAL_BYTES:
        return content.decode(_SEVERAL_BYTES[declared])
    # What declares this in single bytes is not in it: programs write the encoding of their strings, and save as UTF-8.
    return content.decode("utf-8-sig") if declared is not None and declared.startswith("utf-16") else content


def _declared_encoding(content: bytes) -> str | None:
    """Python's name of the encoding that the first line declares; None if there is no such line or encoding."""
    declared = _DECLARED.match(content.removeprefix(codecs.BOM_UTF8)[:300])
    if declared is None:
        return None
    try:
        return codecs.lookup(declared[1].decode("ascii", "replace")).name
    except LookupError:
        return None


def reason_of(error: ParseError, content: bytes) -> str:
    """Words that say why a file is no XML, without the place that the error has."""
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if _declared_encoding(content) in (None, "utf-8") and not is_utf_16:
        try:
            content.decode()
        except UnicodeDecodeError as fault:
            line = content.count(b"\n", 0, fault.start) + 1
            declaration = '<?xml version="1.0" encoding="GBK"?>'
            return f"line {line} is not UTF-8; save the file as UTF-8, or begin it with its encoding, as {declaration}"
    line, column = error.position
    faulty = b"".join(content.splitlines()[line - 1 : line])[: column + 1]
    reason = str(error.msg).partition(": line ")[0]
    return f"{reason}; a bare & must be written &amp;" if _BARE_AMPERSAND.search(faulty) else reason
