"""A Hugging Face hub on 127.0.0.1 with the files of one commit, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PATH = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        files: Mapping[str, bytes] = self.server.files
        asked = _PATH.fullmatch(self.path)
        self.server.asked.append(self.path)
        if asked is None or asked["repository"] != "me/model":
            return self._refuse("RepoNotFound")
        if asked["revision"] not in ("main", "v1", COMMIT):
            return self._refuse("RevisionNotFound")
        content = files.get(asked["file"])
        if content is None:
            return self._refuse("EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has `files` in me/model, and the paths that it was asked for so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files, server.asked = files, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
