"""Downloads from https addresses into the package's cache: resumed, checked, and visible only when complete.

The server may be anyone's: how much it sends, where it leads and what it writes into its headers is limited.
"""

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deformable_detr.core.addresses import SafeRedirects, check_address, without_secrets
from deformable_detr.core.cache import cache_folder, writing_to_cache
from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.core.files import write_json
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.core.reading import open_file, read_file, settings_value
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.core.version import __version__

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_MEGABYTE = 10**6
_LONGEST_NOTE = 100_000
_LONGEST_VERSION = 1000
_LARGEST = 20 * 10**9
# Left free on the disk, and looked after once in so many bytes where the server does not say how many will come.
_RESERVE = 10**8
_BETWEEN_LOOKS = 1 << 26
_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class _Version:
    """Version of a file as the server names it, so that parts of two versions are never joined."""

    etag: str = ""
    modified: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be sent back in a header.

        Raises:
            ValueError: the note or the header that it comes from holds something else.
        """
        for text in (self.etag, self.modified):
            if not isinstance(text, str) or len(text) > _LONGEST_VERSION or not text.isprintable():
                raise ValueError("no version of a file")

    @property
    def name(self) -> str:
        """Value for the header If-Range; weak tags are not used, because they do not promise equal bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Entry:
    """Entry of the cache: paths of the complete file, of its downloaded part, of their versions, and of the lock."""

    def __init__(self, address: str, sha256: str | None) -> None:
        self.address, self.sha256 = address, sha256
        # With a hash, a file has one place in the cache, whatever its address and the tokens in it.
        key = sha256 or hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()
        last = unquote(urlsplit(address).path).rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", last).strip(".") or "weights"
        self.folder = cache_folder() / key[:16]
        self.file = self.folder / name[-100:]
        self.part = self.file.with_name(self.file.name + ".part")
        self.lock = self.file.with_name(self.file.name + ".lock")

    def version_of(self, file: Path) -> _Version:
        try:
            return _Version(**settings_value(read_file(_note(file), most=_LONGEST_NOTE)))
        except (OSError, ValueError, TypeError):  # a lost note costs one more download
            return _Version()


def download(address: str, *, sha256: str | None = None, reporter: Reporter | None = None) -> Path:
    """Local path of the file at an address; from the cache if the server has no newer version.

    Args:
        address: an https address. http is allowed only from this machine or with `sha256`, because anyone on the way
            may replace the file.
        sha256: SHA-256 of the file, in hexadecimal digits. A cached file with it is used without asking the server.
        reporter: receives the progress.

    Raises:
        CheckpointError: no such file, no network, a broken connection (the next call resumes the download), another
            SHA-256 (the file is deleted), or a server that sends more than 20 GB or leads to where nothing is
            encrypted.
        OutputError: the cache cannot be written; its disk may be full, or have no room for the file.
    """
    check_address(address, sha256)
    entry, reporter = _Entry(address, sha256), reporter or Silence()
    with writing_to_cache(entry.folder, "downloads"):
        entry.folder.mkdir(parents=True, exist_ok=True)
    # One process downloads; others wait for the lock and then find the file.
    with _locked(entry, reporter):
        if sha256 is not None and entry.file.is_file() and hash_of(entry.file) == sha256:
            return entry.file
        # The server sends only what is missing or newer. Without a server, the cached file serves.
        try:
            response = _ask(entry, _conditions(entry))
        except _Unreachable as error:
            if sha256 is not None or not entry.file.is_file():
                raise
            reporter.say(f"{error}; taking the file of an earlier download")
            return entry.file
        if response is None:
            return entry.file
        with response:
            _receive(entry, response, reporter)
        _accept(entry, reporter)
    return entry.file


def hash_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open_file(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read {file}: {reason}") from error


class _Unreachable(CheckpointError):
    """Server that cannot be reached, or that fails itself."""


@contextmanager
def _locked(entry: _Entry, reporter: Reporter) -> Iterator[None]:
    """Lock of a cache entry, for one process at a time; it ends with the process that holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(entry.lock)
    with writing_to_cache(entry.folder, "downloads"):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter.say(f"another process is fetching {entry.file.name}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _conditions(entry: _Entry) -> dict[str, str]:
    """Request headers that make the server send only what is missing."""
    if entry.part.is_file() and entry.part.stat().st_size:
        version = entry.version_of(entry.part).name
        if not version and entry.sha256 is None:
            return {}  # else the start of one version and the end of another could be joined
        wanted = {"Range": f"bytes={entry.part.stat().st_size}-"}
        return wanted | ({"If-Range": version} if version else {})
    if entry.file.is_file() and entry.sha256 is None:
        version_there = entry.version_of(entry.file)
        if version_there.etag:
            return {"If-None-Match": version_there.etag}
        if version_there.modified:
            return {"If-Modified-Since": version_there.modified}
    return {}


def _ask(entry: _Entry, conditions: dict[str, str]) -> HTTPResponse | None:
    """Answer of the server; None if the cached file is still its newest version."""
    headers = {"User-Agent": f"deformable-detr/{__version__}", "Accept-Encoding": "identity", **conditions}
    opener = urllib.request.build_opener(SafeRedirects(entry.sha256))
    where = without_secrets(entry.address)
    try:
        response: HTTPResponse = opener.open(urllib.request.Request(entry.address, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304 and conditions:
            return None
        if error.code == 416 and "Range" in conditions:  # the part does not belong to the server's version
            entry.part.unlink()
            return _ask(entry, {})
        answer = f"the server answers {error.code} {one_line(error.reason)}"
        if error.code >= 500:
            raise _Unreachable(f"{where} cannot be had now: {answer}") from error
        raise CheckpointError(f"{where} cannot be had: {answer}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _Unreachable(f"{where} cannot be reached: {one_line(reason)}") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise CheckpointError(
            f"{where} is a web page, not weights; fetch the file in a browser and give its path "
            "(Google Drive shows a page in place of a large file)"
        )
    return response


def _receive(entry: _Entry, response: HTTPResponse, reporter: Reporter) -> None:
    """Append the answer to the downloaded part, and check that it is complete."""
    # Go on after the part only if the server sends exactly the rest; a full answer starts anew.
    have = entry.part.stat().st_size if entry.part.is_file() else 0
    resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if response.status == 206 and not resumed:
        raise CheckpointError(
            f"{without_secrets(entry.address)}: the server sent another part of the file than was asked for"
        )
    have = have if resumed else 0
    total = _announced(entry, response, have)
    # The version is noted before the first byte, so that an interrupted download can be resumed.
    write_json(_note(entry.part), asdict(_version_in(response)))
    stage = f"fetching {entry.file.name}, MB"
    with writing_to_cache(entry.part, "downloads"):
        stream = entry.part.open("ab" if resumed else "wb")
    with stream:
        looked_at = have
        for chunk in _chunks(entry, response):
            with writing_to_cache(entry.part, "downloads"):
                stream.write(chunk)
                stream.flush()
            have += len(chunk)
            if have > _LARGEST:
                entry.part.unlink()
                raise CheckpointError(_too_large(entry, f"has sent {have:,} bytes and goes on"))
            if not total and have - looked_at > _BETWEEN_LOOKS:
                looked_at = have
                _check_room(entry, 0)
            reporter.update(stage, have // _MEGABYTE, max(have, total) // _MEGABYTE)
        with writing_to_cache(entry.part, "downloads"):
            os.fsync(stream.fileno())
    if total and have < total:
        raise CheckpointError(_broken(entry, f"after {have} of {total} bytes"))


def _announced(entry: _Entry, response: HTTPResponse, have: int) -> int:
    """Size of the whole file as the server announces it, in bytes; 0 if it does not.

    Raises:
        CheckpointError: it is no size, or larger than weights are.
        OutputError: the disk has no room for it.
    """
    length = response.headers.get("Content-Length")
    if not length:
        return 0
    if not _NUMBER.fullmatch(length.strip()):
        raise CheckpointError(
            f"{without_secrets(entry.address)} cannot be had: the server says that it has {shown(length)} bytes"
        )
    total = have + int(length)
    if total > _LARGEST:
        raise CheckpointError(_too_large(entry, f"wants to send {total:,} bytes"))
    _check_room(entry, total - have)
    return total


def _check_room(entry: _Entry, size: int) -> None:
    with writing_to_cache(entry.folder, "downloads"):
        free = shutil.disk_usage(entry.folder).free
    if free < size + _RESERVE:
        raise OutputError(
            f"cannot write {entry.part}: {size / _MEGABYTE:,.0f} MB are to come, and {free / _MEGABYTE:,.0f} MB are "
            "free on this disk; DEFORMABLE_DETR_CACHE names another folder for downloads"
        )


def _too_large(entry: _Entry, what: str) -> str:
    return (
        f"{without_secrets(entry.address)} is not weights: the server {what}, and at most {_LARGEST:,} are taken; "
        "fetch a larger file yourself and give its path"
    )


def _version_in(response: HTTPResponse) -> _Version:
    try:
        return _Version(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
    except ValueError:  # what cannot be sent back is no version; without one the next download is a whole one
        return _Version()


def _chunks(entry: _Entry, response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise CheckpointError(_broken(entry, f"({one_line(error)})")) from error
        if not chunk:
            return
        yield chunk


def _broken(entry: _Entry, how: str) -> str:
    return (
        f"the connection to {without_secrets(entry.address)} broke {how}; run it again to go on from there, "
        f"what came is kept in {entry.part}"
    )


def _accept(entry: _Entry, reporter: Reporter) -> None:
    """Check the SHA-256 of the finished part and give it its final name."""
    found = hash_of(entry.part)
    if entry.sha256 is not None and found != entry.sha256:
        entry.part.unlink()
        raise CheckpointError(
            f"{without_secrets(entry.address)} is not the file that was meant: its SHA-256 is {found}, "
            f"not {entry.sha256}; it was not kept"
        )
    with writing_to_cache(entry.file, "downloads"):
        os.replace(entry.part, entry.file)
        os.replace(_note(entry.part), _note(entry.file))
    if entry.sha256 is None:
        reporter.say(f"{entry.file.name} has SHA-256 {found}; with it as --sha256 no other file is taken")


def _note(file: Path) -> Path:
    return file.with_name(file.name + ".json")
