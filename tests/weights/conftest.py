"""A server of files on this machine: it counts what it sends, dies when told to, and can act as huggingface.co."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path. `die_after` bytes of an answer it closes the connection."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.sent = 0  # bytes of bodies
        self.asked = []  # method, path, headers
        self.die_after = None
        self.fail_after_death = False  # from then on it answers 502
        self.status = {}  # answers other than 200, by path
        self.headers = {}  # headers beside the usual ones, by path
        self.ranges = self.etags = True
        self.endless = set()  # paths whose answer never ends
        self.raw = {}  # bytes that are sent as they are in place of an answer, by path

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that goes away is none of its business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((self.command, path, dict(self.headers)))
        if path in server.raw:
            self.wfile.write(server.raw[path])
            self.close_connection = True
            return None
        if path in server.endless:
            return self.send_for_ever()
        status = server.status.get(path)
        if status is None and path not in server.files:
            status = 404
        if status is not None:
            return self.start(status, {"Content-Length": "0", **server.headers.get(path, {})})
        content = server.files[path]
        headers = dict(server.headers.get(path, {}))
        tag = '"' + hashlib.sha256(content).hexdigest() + '"'
        if server.etags:
            headers.setdefault("ETag", tag)
        if self.headers.get("If-None-Match") == headers.get("ETag", ""):
            return self.start(304, headers)
        first, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", tag) == tag:
            first, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if first >= len(content):
                return self.start(416, {"Content-Length": "0"})
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        rest = content[first:]
        self.start(status, {"Content-Length": str(len(rest)), **headers})
        if body:
            part = rest if server.die_after is None else rest[: server.die_after]
            self.wfile.write(part)
            server.sent += len(part)
            if len(part) < len(rest):
                self.wfile.flush()
                self.close_connection = True
                if server.fail_after_death:
                    server.status[path] = 502
        return None

    def send_for_ever(self):
        self.start(200, {"Transfer-Encoding": "chunked", "Content-Type": "application/octet-stream"})
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            while True:
                self.wfile.write(chunk)
                self.server.sent += 0x10000
        except OSError:
            self.close_connection = True

    def start(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing in these tests touches the caches or asks the proxy of whoever runs them."""
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """publish("owner/name", {"config.json": b"..."}): the server is huggingface.co, with an empty cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)

    def publish(name, files, revision="main", commit=COMMIT):
        there = {"X-Repo-Commit": commit}
        for asked in {revision, commit}:
            for file in (
                "config.json",
                "preprocessor_config.json",
                "README.md",
                "model.safetensors",
                "pytorch_model.bin",
            ):
                path = f"/{name}/resolve/{asked}/{file}"
                if file in files:
                    server.files[path] = files[file]
                    server.headers[path] = there
                else:
                    server.status[path] = 404
                    server.headers[path] = {**there, "X-Error-Code": "EntryNotFound"}

    return publish
