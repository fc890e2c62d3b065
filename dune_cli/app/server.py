"""The web server of `dune app`: on 127.0.0.1, under an address that nobody can guess."""

from __future__ import annotations

import secrets
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import optional
from dune_cli.app.jobs import DONE, STOPPED, TASKS, AppJob, Request, Worker, as_json
from dune_cli.app.uploads import MB, Limits, receive, too_large
from dune_cli.errors import UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from flask import Flask, Response
    from werkzeug.serving import BaseWSGIServer

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
FORM_BYTES = 1 * MB  # of an upload beside its files
MOST_JOBS = 20  # whose results are kept; the oldest finished one goes
# nothing from elsewhere; viser's page runs WebAssembly and workers that it has in itself
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass
class AppState:
    """What the server knows: its private `folder`, the jobs by number."""

    folder: Path
    limits: Limits
    worker: Worker
    jobs: dict[int, AppJob] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: int = 0

    def add(self, files: Any, request: Request) -> AppJob:
        """Stores an upload and puts its job in the queue. UserError for what cannot be done."""
        with self.lock:
            self.last += 1
            number = self.last
        upload = receive(files, self.folder / str(number), self.limits)
        try:
            request.check(upload.files)
        except UserError:
            upload.remove()
            raise
        job = AppJob(number, upload, request)
        with self.lock:
            self.jobs[number] = job
            finished = [one for one in self.jobs.values() if one.state in (DONE, STOPPED)]
            for old in finished[: max(0, len(self.jobs) - MOST_JOBS)]:
                self.jobs.pop(old.number).upload.remove()
        self.worker.add(job)
        return job

    def remove(self, number: int) -> None:
        """Deletes a job with its photos and results; one at work ends soon."""
        job = self.jobs.get(number)
        if job is None:
            return
        job.cancelled.set()
        if job.state in (DONE, STOPPED):
            with self.lock:
                self.jobs.pop(number, None)
            job.upload.remove()


def make_app(state: AppState, token: str, hosts: tuple[str, ...] = ()) -> Flask:
    """The pages below /TOKEN/; everything else is not found. `hosts`: names by which the page may be asked for, so that
    no other site's name leads here (DNS rebinding); () for any, in tests."""
    flask = optional.require("flask", "dune app", extra="app")
    app = flask.Flask("dune", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = state.limits.total_bytes + FORM_BYTES
    root = f"/{token}"

    @app.before_request
    def only_here() -> None:
        if hosts and flask.request.host not in hosts:
            flask.abort(404)
        origin = flask.request.headers.get("Origin")
        if origin is not None and origin != flask.request.host_url.rstrip("/"):
            flask.abort(404)

    @app.after_request
    def with_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(UserError)
    def refused(error: UserError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 400

    @app.errorhandler(413)
    def large(error: Any) -> tuple[dict[str, str], int]:
        return {"error": too_large(state.limits)}, 413

    @app.get(f"{root}/")
    def page() -> Any:
        return flask.send_file(PAGE)

    @app.get(f"{root}/settings")
    def settings() -> dict[str, Any]:
        limits = {"files": state.limits.files, "bytes": state.limits.total_bytes}
        return {"tasks": list(TASKS), "limits": limits, "endings": [*IMAGE_SUFFIXES, *VIDEO_SUFFIXES]}

    @app.post(f"{root}/jobs")
    def add() -> dict[str, Any]:
        form = flask.request.form
        request = Request(
            tuple(name for name in TASKS if name in form.getlist("task")),
            _number(form.get("fov_deg"), "the field of view", 1, 170, "degrees"),
            _number(form.get("baseline"), "the distance of the cameras", 0.001, 10_000, "metres"),
        )
        return described(state.add(flask.request.files.getlist("file"), request))

    @app.get(f"{root}/jobs/<int:number>")
    def show(number: int) -> dict[str, Any]:
        return described(known(number))

    @app.delete(f"{root}/jobs/<int:number>")
    def remove(number: int) -> dict[str, Any]:
        state.remove(number)
        return {}

    @app.get(f"{root}/jobs/<int:number>/files/<name>")
    def send(number: int, name: str) -> Any:
        as_file = "download" in flask.request.args
        return flask.send_from_directory(known(number).folder, name, as_attachment=as_file)

    @app.get(f"{root}/jobs/<int:number>/all.zip")
    def send_all(number: int) -> Any:
        job = known(number)
        path = job.upload.folder / "all.zip"
        with state.lock, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(job.folder.iterdir()):
                archive.write(file, file.name)
        return flask.send_file(path, as_attachment=True, download_name=f"dune_{number}.zip")

    def known(number: int) -> AppJob:
        job = state.jobs.get(number)
        if job is None:
            flask.abort(404)
        return job

    def described(job: AppJob) -> dict[str, Any]:
        return as_json(job, lambda name: f"jobs/{job.number}/files/{name}")

    return app


def serve(state: AppState, port: int) -> tuple[BaseWSGIServer, str]:
    """The server, which runs in a thread of its own, and the page's address. UserError where the port is not free."""
    optional.require("flask", "dune app", extra="app")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *arguments: Any) -> None:
            """No line a request."""

    token = secrets.token_urlsafe(16)
    try:
        server = make_server(HOST, port, _not_yet, threaded=True, request_handler=Quiet)
    except (OSError, SystemExit) as error:
        raise UserError(f"no page on {HOST}:{port}, which is taken; name another --port, or 0 for any") from error
    server.app = make_app(state, token, (f"{HOST}:{server.port}", f"localhost:{server.port}"))
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
    return server, f"http://{HOST}:{server.port}/{token}/"


def _not_yet(environ: Any, start: Any) -> list[bytes]:
    """Until the port, which the page's addresses have, is known."""
    start("503 Service Unavailable", [])
    return []


def _number(text: str | None, what: str, low: float, high: float, unit: str) -> float | None:
    """A number of the form, None where it is empty. UserError for another one."""
    if text is None or not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UserError(f"{what} {text!r} is not between {low:g} and {high:g} {unit}; correct it, or leave it empty")
    return value
