import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.weights import download as downloads
from deformable_detr.weights.download import download, hash_of

CONTENT = random.Random(0).randbytes(3_300_007)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def address(server):
    server.files["/models/best.safetensors"] = CONTENT
    return server.address + "/models/best.safetensors"


class Notes:
    def __init__(self):
        self.lines, self.steps = [], []

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        self.steps.append((stage, done, total))


def entries(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("sha256", [HASH, None])
def test_a_file_is_fetched_once(server, address, cache, sha256):
    notes = Notes()
    path = download(address, sha256=sha256, reporter=notes)
    assert path.read_bytes() == CONTENT
    assert path.name == "best.safetensors"
    assert cache in path.parents
    assert notes.steps[-1] == ("fetching best.safetensors, MB", 3, 3)
    assert any(HASH in line for line in notes.lines) == (sha256 is None)
    assert download(address, sha256=sha256) == path
    assert server.sent == len(CONTENT)
    # With a hash nobody needs to be asked.
    assert len(server.asked) == (1 if sha256 else 2)
    assert entries(cache) == ["best.safetensors", "best.safetensors.json"]


def test_with_a_hash_the_address_may_change_without_it_the_file_may(server, address):
    path = download(address + "?token=one", sha256=HASH)
    assert download(address + "?token=two", sha256=HASH) == path
    assert len(server.asked) == 1
    assert download(address).read_bytes() == CONTENT
    server.files["/models/best.safetensors"] = b"newer"
    assert download(address).read_bytes() == b"newer"
    assert download(address, sha256=HASH).read_bytes() == CONTENT


def test_a_wrong_hash_names_both_and_keeps_nothing(address, cache):
    with pytest.raises(CheckpointError) as caught:
        download(address, sha256="0" * 64)
    assert HASH in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert not [name for name in entries(cache) if not name.endswith(".json")]


@pytest.mark.parametrize("sha256", [HASH, None])
def test_a_server_that_dies_midway_is_gone_on_with(server, address, cache, sha256):
    server.die_after = 1_200_000
    with pytest.raises(CheckpointError, match=r"broke after 1200000 of 3300007 bytes; run it again to go on"):
        download(address, sha256=sha256)
    assert entries(cache) == ["best.safetensors.part", "best.safetensors.part.json"]
    server.die_after = None
    assert download(address, sha256=sha256).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)  # no byte twice
    assert server.asked[-1][2]["Range"] == "bytes=1200000-"


@pytest.mark.parametrize("how", ["newer", "no ranges", "no tags", "shorter"])
def test_parts_of_two_files_are_never_joined(server, address, how):
    server.etags = how != "no tags"
    server.die_after = 1_200_000
    with pytest.raises(CheckpointError, match="broke"):
        download(address)
    server.die_after = None
    server.ranges = how != "no ranges"
    newer = {"newer": b"n" * 2_000_000, "shorter": b"n" * 1000}.get(how, CONTENT)
    server.files["/models/best.safetensors"] = newer
    assert download(address).read_bytes() == newer
    assert server.sent == 1_200_000 + len(newer)


def test_a_part_of_another_file_is_found_by_the_hash(server, address):
    """Without a tag, a resumed part cannot be told from another's; the hash can, and the next call starts afresh."""
    server.etags, server.die_after = False, 1000
    server.files["/models/best.safetensors"] = b"x" * 5000
    with pytest.raises(CheckpointError, match="broke"):
        download(address, sha256=HASH)
    server.die_after, server.files["/models/best.safetensors"] = None, CONTENT
    with pytest.raises(CheckpointError, match="is not the file that was meant"):
        download(address, sha256=HASH)
    assert download(address, sha256=HASH).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_dropped(server, address, cache):
    part = cache / HASH[:16] / "best.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert download(address, sha256=HASH).read_bytes() == CONTENT


def test_a_damaged_cached_file_is_fetched_again(server, address):
    path = download(address, sha256=HASH)
    path.write_bytes(b"rot")
    assert download(address, sha256=HASH).read_bytes() == CONTENT


def test_servers_that_do_not_have_it(server, address):
    with pytest.raises(CheckpointError, match=r"nope cannot be had: the server answers 404"):
        download(server.address + "/nope")
    server.status["/models/best.safetensors"] = 503
    with pytest.raises(CheckpointError, match=r"cannot be had now: the server answers 503"):
        download(address)


def test_a_server_that_is_down_is_named_unless_the_file_is_here(server, address, cache):
    path = download(address)
    server.status["/models/best.safetensors"] = 503
    notes = Notes()
    assert download(address, reporter=notes) == path
    assert "taking the file of an earlier download" in notes.lines[0]
    server.shutdown()
    server.server_close()
    assert download(address, reporter=notes) == path
    shutil.rmtree(cache)
    with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be reached: .*refused"):
        download(address)


def test_a_web_page_is_not_kept(server, cache):
    server.files["/file/view"] = b"<html>"
    server.headers["/file/view"] = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(CheckpointError, match="is a web page, not weights"):
        download(server.address + "/file/view")
    assert entries(cache) == []


def test_what_is_not_encrypted_needs_a_hash_and_never_leads_back(server, address):
    with pytest.raises(CheckpointError, match=r"is not encrypted.*--sha256"):
        download("http://example.com/x.pth")
    server.status["/moved"] = 302
    server.headers["/moved"] = {"Location": "http://example.com/x.pth"}
    with pytest.raises(CheckpointError, match=r"http://example\.com/x\.pth is not encrypted"):
        download(server.address + "/moved")
    server.headers["/moved"] = {"Location": address}
    assert download(server.address + "/moved").read_bytes() == CONTENT
    for other in ("ftp://example.com/x", "file:///etc/passwd", "s3://bucket/x", "https://"):
        with pytest.raises(CheckpointError, match=r"weights come from https://, a path, or a name"):
            download(other)


@pytest.fixture
def encrypted(tmp_path, monkeypatch):
    """A second server, of https, whose certificate is trusted."""
    import ssl

    from tests.weights.conftest import FileServer

    if shutil.which("openssl") is None:
        pytest.skip("nothing to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = FileServer()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("sha256", [HASH, None])
def test_https_never_leads_to_http_not_even_on_this_machine(server, address, encrypted, sha256):
    secure = f"https://localhost:{encrypted.server_port}"
    encrypted.status["/moved"] = 302
    encrypted.headers["/moved"] = {"Location": address}
    with pytest.raises(
        CheckpointError,
        match=r"^https://localhost:\d+/moved leads to http://127\.0\.0\.1:\d+/models/\S+, which is not encr",
    ):
        download(secure + "/moved", sha256=sha256)
    assert server.asked == []
    encrypted.files["/x.pth"] = CONTENT
    encrypted.headers["/moved"] = {"Location": secure + "/x.pth"}
    assert download(secure + "/moved", sha256=sha256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "https://[::1", "//", "https://x:port/"]
)
def test_redirects_to_what_is_no_web_address_are_one_line(server, cache, place):
    server.status["/moved"] = 302
    server.headers["/moved"] = {"Location": place}
    with pytest.raises(CheckpointError) as caught:
        download(server.address + "/moved")
    assert str(caught.value).isprintable()
    assert entries(cache) == []


def test_redirects_without_end_are_one_line(server):
    for name, other in (("a", "b"), ("b", "a")):
        server.status[f"/{name}"] = 302
        server.headers[f"/{name}"] = {"Location": f"{server.address}/{other}"}
    with pytest.raises(CheckpointError, match=r"/a cannot be had: the server answers 302 .*infinite loop") as caught:
        download(server.address + "/a")
    assert str(caught.value).isprintable()
    assert len(server.asked) < 20


@pytest.mark.parametrize("length", ["many", "-5", "1e9", "0x10", "9" * 30, "5, 5"])
def test_a_length_that_is_none_is_refused(server, address, cache, length):
    server.headers["/models/best.safetensors"] = {"Content-Length": length}
    with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be had: the server says that it has '"):
        download(address)
    assert entries(cache) == []


def test_more_than_weights_ever_have_is_not_taken(server, address, cache, monkeypatch):
    server.headers["/models/best.safetensors"] = {"Content-Length": str(10**11)}
    with pytest.raises(
        CheckpointError, match=r"the server wants to send 100,000,000,000 bytes, and at most 20,000,000,0"
    ):
        download(address)
    monkeypatch.setattr(downloads, "_LARGEST", 2_000_000)
    server.endless.add("/endless.pth")
    with pytest.raises(CheckpointError, match=r"has sent [\d,]+ bytes and goes on, and at most 2,000,000 are taken"):
        download(server.address + "/endless.pth")
    assert not [name for name in entries(cache) if name.endswith(".part")]


def test_a_disk_without_room_is_said_before_it_is_full(server, address, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=10**8 + len(CONTENT) - 1))
    with pytest.raises(OutputError, match=r"3 MB are to come, and 103 MB are free on this disk; DEFORMABLE_DETR_CACHE"):
        download(address)
    monkeypatch.setattr(downloads, "_BETWEEN_LOOKS", 10**6)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=10**8 - 1))
    server.endless.add("/endless.pth")
    with pytest.raises(OutputError, match=r"0 MB are to come, and 100 MB are free"):
        download(server.address + "/endless.pth")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HELLO\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 404 \x1b[31mgone\x1b[0m\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 nothing new\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_answers_that_are_no_http_are_one_line(server, cache, answer):
    server.raw["/x.pth"] = answer
    with pytest.raises(CheckpointError) as caught:
        download(server.address + "/x.pth")
    assert str(caught.value).isprintable()
    assert not (cache / "x.pth").exists()


@pytest.mark.parametrize("tag", ['"a\x1bb"', '"' + "x" * 5000 + '"', '"a"\r\n X-Evil: 1'])
def test_a_version_that_could_not_be_sent_back_is_none(server, address, tag):
    server.headers["/models/best.safetensors"] = {"ETag": tag, "Last-Modified": ""}
    assert download(address).read_bytes() == CONTENT
    assert download(address).read_bytes() == CONTENT
    assert not {"If-None-Match", "X-Evil"} & server.asked[-1][2].keys()


@pytest.mark.parametrize("note", ['{"etag": 5, "modified": []}', "[]", "[" * 9000, '{"etag": "a\\r\\nX-Evil: 1"}'])
def test_a_damaged_note_costs_one_more_download(server, address, note):
    path = download(address)
    path.with_name(path.name + ".json").write_text(note)
    assert download(address) == path
    assert not {"If-None-Match", "X-Evil"} & server.asked[-1][2].keys()
    assert server.sent == 2 * len(CONTENT)


@pytest.mark.parametrize("name", ["..", ".", "a/..", "%2e%2e", "ü" * 90, "a%00b", "x" * 300])
def test_a_name_of_an_address_is_a_plain_file_name(server, cache, name):
    from urllib.parse import quote

    address = f"{server.address}/{quote(name, safe='%/.')}"
    for path in (f"/{quote(name, safe='%/.')}", f"/{name}"):
        server.files[path] = CONTENT
    path = download(address, sha256=HASH)
    assert path.parent.parent == cache
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address", ["https://[::1", "https://", "https:///x", "http://\x1b[31m", "https://a\nb/c", "https://x:99999999/a"]
)
def test_what_is_no_address_is_one_line(address):
    with pytest.raises(CheckpointError) as caught:
        download(address)
    assert str(caught.value).isprintable()


def test_a_pipe_has_no_hash(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(CheckpointError, match="it is a pipe or a device, not a file"):
        hash_of(tmp_path / "x")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nothing to make a certificate with")
def test_a_certificate_nobody_vouches_for_is_refused(server, address, tmp_path):
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(CheckpointError, match="certificate verify failed"):
        download(address.replace("http:", "https:"), sha256=HASH)
    assert server.sent == 0


class FullDisk:
    """A file on a disk that has room for so many bytes more."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, chunk):
        if len(chunk) > self._room:
            self._file.write(chunk[: self._room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(chunk)
        return self._file.write(chunk)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def test_a_full_disk_is_an_output_error_and_can_be_gone_on_with(server, address, cache, monkeypatch):
    real = downloads.Path.open

    def full(path, mode="r", *rest, **options):
        file = real(path, mode, *rest, **options)
        return FullDisk(file, 1_500_000) if path.suffix == ".part" and mode in ("wb", "ab") else file

    with monkeypatch.context() as patch:
        patch.setattr(downloads.Path, "open", full)
        with pytest.raises(OutputError, match=r"No space left on device; DEFORMABLE_DETR_CACHE names another"):
            download(address, sha256=HASH)
    assert entries(cache) == ["best.safetensors.part", "best.safetensors.part.json"]
    assert download(address, sha256=HASH).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(address, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write .*file/.*DEFORMABLE_DETR_CACHE"):
        download(address)


# The module alone, since what lies beside it takes seconds to import.
PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("download", {downloads.__file__!r})
module = importlib.util.module_from_spec(spec)
sys.modules["download"] = module
spec.loader.exec_module(module)
print(module.download(sys.argv[1], sha256={HASH!r}))
"""


def test_two_processes_fetch_it_once(server, address):
    command = [sys.executable, "-c", PROGRAM, address]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {one.communicate(timeout=60)[0].strip() for one in both}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_who_waits_for_another_says_so(server, address, cache):
    entry = downloads._Entry(address, HASH)
    entry.folder.mkdir(parents=True)
    lock = FileLock(entry.lock)
    lock.acquire()
    notes, result = Notes(), []
    waiting = threading.Thread(target=lambda: result.append(download(address, sha256=HASH, reporter=notes)))
    waiting.start()
    while not notes.lines:
        time.sleep(0.01)
    assert server.asked == []
    lock.release()
    waiting.join()
    assert "another process is fetching best.safetensors" in notes.lines[0]
    assert result[0].read_bytes() == CONTENT


def test_secrets_in_addresses_are_not_shown(server):
    with pytest.raises(CheckpointError) as caught:
        download(server.address + "/nope?token=secret")
    assert "secret" not in str(caught.value)


def test_hash_of(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    assert hash_of(tmp_path / "a") == HASH
    with pytest.raises(CheckpointError, match="cannot read"):
        hash_of(tmp_path / "b")
