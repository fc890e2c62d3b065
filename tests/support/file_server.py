"""A web server on 127.0.0.1 that misbehaves on request, for the download tests."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server serves, and how badly. `cut_after`: bytes sent before each of the first `cuts` answers breaks."""

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: int = 0
    cut_after: int = 0
    status: int = 200
    failures: int = 0  # so many answers with `status` before it works
    content_type: str = "application/octet-stream"
    send_length: bool = True
    chunked: bool = False  # a body in chunks, which has no length
    honest_if_range: bool = True
    redirect: str | None = None
    block_seconds: float = 0.0  # pause between blocks of 64 KiB
    stall_seconds: float = 0.0  # pause before the first one
    requests: list[dict[str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behaviour: Behaviour = self.server.behaviour
        behaviour.requests.append({"path": self.path, **dict(self.headers)})
        self.close_connection = True
        if behaviour.redirect and self.path != "/moved":
            self.send_response(302)
            self.send_header("Location", behaviour.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if behaviour.failures > 0:
            behaviour.failures -= 1
            self.send_response(behaviour.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, wanted = 0, self.headers.get("Range", "")
        same = not behaviour.honest_if_range or self.headers.get("If-Range") in (None, behaviour.etag)
        if wanted and behaviour.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(behaviour.content):
                self.send_error(416)
                return
        body, total = behaviour.content[start:], len(behaviour.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        self.send_header("Content-Type", behaviour.content_type)
        if behaviour.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif behaviour.send_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behaviour.cuts > 0:
            behaviour.cuts -= 1
            body = body[: behaviour.cut_after]
        time.sleep(behaviour.stall_seconds)
        for at in range(0, len(body), 1 << 16):
            try:
                block = body[at : at + (1 << 16)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if behaviour.chunked else block)
                self.wfile.flush()
            except ConnectionError:
                return
            time.sleep(behaviour.block_seconds)
        if behaviour.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass


class FileServer:
    """Serves one `Behaviour` at any path under `url` while the context lasts."""

    def __init__(self, content: bytes, **how: object) -> None:
        self.behaviour = Behaviour(content, **how)

    def __enter__(self) -> FileServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.behaviour = self.behaviour
        self.url = f"http://127.0.0.1:{self._server.server_port}/weights.pth"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of every request so far."""
        return [request.get("Range") for request in self.behaviour.requests]
