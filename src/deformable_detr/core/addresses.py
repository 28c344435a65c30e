"""Addresses that files are fetched from: which of them are taken, where a server may lead, and how they are shown."""

import re
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects of the server, followed except to less: from https to http, or from elsewhere to this machine."""

    def __init__(self, sha256: str | None) -> None:
        self._sha256 = sha256

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Request for the address that the server names; urllib has refused all but http, https and ftp before.

        Raises:
            CheckpointError: the server may not lead there.
        """
        check_address(newurl, self._sha256)
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        lowered = before.scheme == "https" and after.scheme == "http"
        if lowered or (after.hostname in _THIS_MACHINE and before.hostname not in _THIS_MACHINE):
            why = "is not encrypted" if lowered else "is on this machine"
            way = f"{without_secrets(req.full_url)} leads to {without_secrets(newurl)}"
            raise CheckpointError(f"{way}, which {why}; no server may do that")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Answer of the address that the server names; the first connection is closed also where that is refused.

        Raises:
            CheckpointError: the server may not lead there.
            ValueError: what it names is no address.
        """
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (CheckpointError, ValueError):
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def check_address(address: str, sha256: str | None) -> None:
    """Refuse an address that is none of the web, or that is not encrypted.

    Args:
        address: address that the user or a server names.
        sha256: SHA-256 that the file must have; with it nobody on the way can exchange the file.

    Raises:
        CheckpointError: it is no https address, nor one of http on this machine or with a SHA-256.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise CheckpointError(f"cannot fetch {without_secrets(address)}: it is no address ({error})") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise CheckpointError(
            f"cannot fetch {without_secrets(address)}: weights come from https://, a path, or a name on huggingface.co"
        )
    if parts.scheme == "http" and sha256 is None and parts.hostname not in _THIS_MACHINE:
        raise CheckpointError(
            f"{without_secrets(address)} is not encrypted, so anyone on the way may exchange the file; "
            "use https://, or give its hash with --sha256"
        )


def without_secrets(address: str) -> str:
    """Address without the parts that may be secret: user, password, tokens. Other texts stay as they are."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return one_line(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")
