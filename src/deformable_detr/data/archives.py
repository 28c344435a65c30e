"""Data sets in zip archives, as tools export them: unpacked once into the cache, within limits.

Only images and annotations are unpacked; other files are counted. An archive comes from strangers: names that lead out
of it, links, devices, and sizes that no data set has are refused before a byte is written. A folder in the cache is
renamed into its place when it is whole, and two processes do not unpack the same archive at once.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from deformable_detr.core.cache import cache_folder, writing_to_cache
from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.core.progress import SILENT_S
from deformable_detr.core.reading import open_file
from deformable_detr.data.archive_cache import locked_key, mark_in_use, read_note, remove_old, write_note
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.images import IMAGE_SUFFIXES

ANNOTATION_SUFFIXES = frozenset(
    {".json", ".jsonl", ".txt", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".names", ".data", ".md"}
)
"""Endings, in lower case, of files beside images that a data set may need: annotations, class lists, its card."""
_WANTED = IMAGE_SUFFIXES | ANNOTATION_SUFFIXES

_MOST_FILES = 1_000_000
_MOST_BYTES = 1 << 40
_MOST_RATIO = 200
_SMALL = 1 << 30  # what may be unpacked whatever the ratio is
_MOST_DIRECTORY = 128 << 20  # the list of a million files
_MEGABYTE = 1 << 20
_LONGEST_START = 512
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OTHERS = (
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive"),
    (re.compile(rb"Rar!\x1a\x07"), "a rar archive"),
    (re.compile(rb"\xfd7zXZ\0"), "an xz archive"),
    (re.compile(rb"BZh\d1AY&SY"), "a bzip2 archive"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd archive"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive"),
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_NESTED = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".zst"})
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_LONGEST_END = 22 + (1 << 16) + 76
# Errors of the modules that unpack, on damaged archives.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, OverflowError)
# Errors of the disk that the names in the archive are to blame for.
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ)


class UnpackedArchive(NamedTuple):
    """Archive whose images and annotations lie in a folder of the cache."""

    folder: Path
    """Folder with the files of the archive."""
    remark: str
    """Words for people: where the files come from, and how many others stayed in the archive."""


class _Member(NamedTuple):
    """File of an archive that is to be unpacked, and its place below the folder."""

    info: zipfile.ZipInfo
    parts: tuple[str, ...]


class _Plan(NamedTuple):
    """Files of an archive to unpack, and the number of those that stay in it."""

    members: list[_Member]
    num_left: int


def is_archive(path: str | Path) -> bool:
    """Whether a path is an archive that `unpack` unpacks, by its first bytes."""
    try:
        with open_file(_place_of(path)) as stream:
            return stream.read(_LONGEST_START).startswith(_ZIP)
    except (OSError, ValueError):
        return False


def unpack(path: str | Path, *, on_progress: Callable[[int, int], None] | None = None) -> UnpackedArchive | None:
    """Unpack an archive into the cache, if it is not there yet; None if the path is no archive.

    An archive is known by its place, size and time of change, and the end of its content; a changed one is unpacked
    anew. Folders of the cache can be deleted at any time; old ones that no process uses are, when another archive is
    unpacked: see `archive_cache`.

    Args:
        path: any path.
        on_progress: called, from the third second on, with the number of megabytes done and of all.

    Raises:
        DataError: an archive that is damaged, encrypted, hostile or far too large, or of another kind than zip.
        OutputError: the cache cannot be written, or its disk is too small.
    """
    place = _place_of(path)
    try:
        if not place.is_file():
            return None
        with open_file(place) as stream:
            start = stream.read(_LONGEST_START)
            if not start.startswith(_ZIP):
                _refuse_other_archives(start, path)
                return None
            key = _key_of(place, stream)
    except (OSError, ValueError):
        return None  # whoever reads it as something else says what is wrong
    # The name stays, because it may be that of the only split.
    name = re.sub(r"[^\w.-]+", "_", place.stem).strip(".")[:100] or "archive"
    home = cache_folder() / "archives" / key
    with writing_to_cache(home.parent, "what is unpacked"):
        home.parent.mkdir(parents=True, exist_ok=True)
    with locked_key(home):
        is_new = read_note(home) is None
        if is_new:
            _unpack_into(home, name, place, path, on_progress)
        mark_in_use(home)
        unpacked = UnpackedArchive(home / name, _remark(read_note(home), path))
    if is_new:
        remove_old(home, place)
    return unpacked


def _place_of(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _refuse_other_archives(start: bytes, path: str | Path) -> None:
    for pattern, kind in _OTHERS:
        if pattern.match(start):
            raise DataError(f"{path}: this is {kind}; unpack it and give the folder. Only zip is opened as it is")


def _key_of(place: Path, stream: BinaryIO) -> str:
    """Name in the cache: from place, size and time of change, and from the last bytes, which list the files."""
    status = os.fstat(stream.fileno())
    stream.seek(max(0, status.st_size - _MEGABYTE))
    digest = hashlib.sha256(stream.read(_MEGABYTE)).hexdigest()
    text = f"{place}\n{status.st_size}\n{status.st_mtime_ns}\n{digest}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]


def _remark(note: dict[str, Any] | None, path: str | Path) -> str:
    num_left = (note or {}).get("left")
    files = f"{num_left} other file{'s' if num_left != 1 else ''}"
    return f"unpacked from {path}" + (f", where {files} stayed" if num_left else "")


def _unpack_into(
    home: Path, name: str, place: Path, path: str | Path, on_progress: Callable[[int, int], None] | None
) -> None:
    # Whoever holds the lock is alone: what lies here is of a process that was killed.
    for stale in (home, *home.parent.glob(f"{home.name}.*.tmp")):
        shutil.rmtree(stale, ignore_errors=True)
    partial = home.with_name(f"{home.name}.{os.getpid()}.tmp")
    try:
        with _damage_explained(path), open_file(place) as stream:
            _check_directory(stream, path)
            with zipfile.ZipFile(stream) as archive:
                plan = _plan_of(archive, os.fstat(stream.fileno()).st_size, path)
                _check_space(plan, home.parent, path)
                with writing_to_cache(partial, "what is unpacked"):
                    (partial / name).mkdir(parents=True)
                _extract(archive, plan, partial / name, path, on_progress)
        with writing_to_cache(home, "what is unpacked"):
            write_note(partial, place, files=len(plan.members), left=plan.num_left)
            os.replace(partial, home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _damage_explained(path: str | Path) -> Iterator[None]:
    """Context in which an error of the modules that unpack becomes one line that names the archive."""
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"{path}: this zip archive is damaged or cut off: {shown(str(error))[1:-1]}") from error
    except (OSError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataError(f"{path}: this zip archive cannot be read: {shown(reason)[1:-1]}") from error


def _check_directory(stream: BinaryIO, path: str | Path) -> None:
    """Refuse a list of files that is too long before it is read, as all of it goes into memory."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(max(0, size - _LONGEST_END))
    end = stream.read()
    at = end.rfind(_END)
    if at < 0 or len(end) < at + 22:
        raise zipfile.BadZipFile("its end is missing, or it is one part of several")
    num_bytes = int.from_bytes(end[at + 12 : at + 16], "little")
    at_64 = end.rfind(_END_64, 0, at)
    if at_64 >= 0:
        num_bytes = max(num_bytes % 0xFFFFFFFF, int.from_bytes(end[at_64 + 40 : at_64 + 48], "little"))
    if min(num_bytes, size) > _MOST_DIRECTORY:
        raise DataError(
            f"{path}: this zip archive lists its files in {num_bytes:,} bytes, and no more than {_MOST_DIRECTORY:,} "
            "are read; unpack it and give the folder"
        )
    stream.seek(0)


def _plan_of(archive: zipfile.ZipFile, size: int, path: str | Path) -> _Plan:
    """Plan of what to unpack, after a look at all names and sizes.

    Raises:
        DataError: a name leads out of the archive or comes twice, an entry is a link or a device, files are encrypted,
            or there is far too much of it.
    """
    infos = archive.infolist()
    if len(infos) > _MOST_FILES:
        raise DataError(
            f"{path}: this zip archive has {len(infos):,} entries, and no more than {_MOST_FILES:,} are read"
        )
    found: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    num_left = num_nested = 0
    for info in infos:
        name = _name_of(info)
        parts = _parts_below(name, path)
        if name.endswith("/") or not parts:
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            what = "a link" if kind == stat.S_IFLNK else "no file"
            raise DataError(f"{path}: {shown(name)} in this zip archive is {what}; unpack it and give the folder")
        if not _is_wanted(parts):
            num_left += 1
            num_nested += os.path.splitext(parts[-1])[1].lower() in _NESTED
            continue
        if parts in found:
            raise DataError(f"{path}: this zip archive has {shown(name)} twice; unpack it and give the folder")
        found[parts] = info
    members = [_Member(info, parts) for parts, info in found.items()]
    if any(info.flag_bits & 1 for info in found.values()):
        raise DataError(f"{path}: this zip archive is encrypted; unpack it with its password and give the folder")
    for info in found.values():
        # The others need gigabytes for a few bytes (LZMA), or are not in Python's library.
        if info.compress_type not in _METHODS:
            text = f"in a way that is not read here (method {info.compress_type}); unpack it and give the folder"
            raise DataError(f"{path}: this zip archive packs {shown(info.filename)} {text}")
    if not members:
        inside = f", but {num_nested} archives: unpack it, and them" if num_nested else ""
        raise DataError(f"{path}: this zip archive holds no images or annotations{inside}")
    total = sum(info.file_size for info in found.values())
    if total > _MOST_BYTES or total > max(_SMALL, _MOST_RATIO * size):
        raise DataError(
            f"{path}: {size:,} bytes would be unpacked to {total:,}, which no data set does; limits are "
            f"{_MOST_RATIO} times its size and {_MOST_BYTES:,} bytes. If that is right, unpack it and give the folder"
        )
    return _Plan(members, num_left)


def _name_of(info: zipfile.ZipInfo) -> str:
    """Name of an entry, with slashes; some programs write back-slashes, or UTF-8 without saying so."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):  # else the letters are of the old code page, as the standard has it
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _parts_below(name: str, path: str | Path) -> tuple[str, ...]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts:
        raise DataError(f"{path}: this zip archive names a file outside of itself, {shown(name)}; it is not unpacked")
    return tuple(parts)


def _is_wanted(parts: tuple[str, ...]) -> bool:
    # macOS adds a shadow of each file, with the ending of the file.
    if parts[0] == "__MACOSX" or parts[-1].startswith("."):
        return False
    return os.path.splitext(parts[-1])[1].lower() in _WANTED


def _check_space(plan: _Plan, folder: Path, path: str | Path) -> None:
    total = sum(member.info.file_size for member in plan.members)
    with writing_to_cache(folder, "what is unpacked"):
        free = shutil.disk_usage(folder).free
    if total > free:
        raise OutputError(
            f"{path}: unpacked it has {total:,} bytes, and {folder} has room for {free:,}; DEFORMABLE_DETR_CACHE "
            "names another folder for what is unpacked"
        )


def _extract(
    archive: zipfile.ZipFile,
    plan: _Plan,
    folder: Path,
    path: str | Path,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(member.info.file_size for member in plan.members)
    began, done = time.monotonic(), 0
    made: set[tuple[str, ...]] = set()
    for info, parts in plan.members:
        target = folder.joinpath(*parts)
        try:
            if parts[:-1] not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(parts[:-1])
            with archive.open(info) as source, target.open("xb") as output:
                while piece := source.read(_MEGABYTE):
                    output.write(piece)
                    done += len(piece)
                    if on_progress is not None and time.monotonic() - began > SILENT_S:
                        on_progress(done // _MEGABYTE, max(1, total // _MEGABYTE))
        except OSError as error:
            if error.errno in _BAD_NAMES:
                text = f"cannot be written under this name: {error.strerror}"
                raise DataError(f"{path}: {shown('/'.join(parts))} in this zip archive {text}") from error
            with writing_to_cache(target, "what is unpacked"):
                raise
