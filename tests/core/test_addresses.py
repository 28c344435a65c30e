"""Where a server leads is tested with servers, in tests/weights/test_download.py."""

import pytest

from deformable_detr.core.addresses import check_address, without_secrets
from deformable_detr.core.errors import CheckpointError


def test_secrets_are_not_shown():
    assert without_secrets("https://me:pass@example.com:8443/a/b.pth?token=1#x") == "https://example.com:8443/a/b.pth"
    assert without_secrets("https://example.com?token=1") == "https://example.com"
    assert without_secrets("https://[::1/x?token=1") == "https://[::1/x"
    assert without_secrets("runs/best") == "runs/best"
    assert without_secrets("https://a/\x1b[31m\nb") == "https://a/?[31m b"


def test_what_is_taken():
    for address in ("https://example.com/x.pth", "http://localhost:8000/x", "http://127.0.0.1/x", "http://[::1]/x"):
        check_address(address, None)
    check_address("http://example.com/x", "0" * 64)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://example.com/x", "is not encrypted.*--sha256"),
        ("http://127.0.0.1.example.com/x", "is not encrypted"),
        ("http://localhost@example.com/x", r"^http://example\.com/x is not encrypted"),
        ("ftp://example.com/x", "weights come from https://, a path, or a name"),
        ("file:///etc/passwd", "weights come from https://"),
        ("hf://owner/name", "weights come from https://"),
        ("https://", "weights come from https://"),
        ("https://[::1", "it is no address"),
    ],
)
def test_what_is_not_taken(address, message):
    with pytest.raises(CheckpointError, match=message):
        check_address(address, None)
