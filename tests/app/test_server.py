"""The page's addresses: who may ask, what a job tells, and what is left of it."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flask", reason="the extra 'app' is not installed")
pytest.importorskip("viser", reason="the extra 'app' is not installed")

from dune_cli import console
from dune_cli.app import jobs
from dune_cli.app.server import AppState, make_app
from dune_cli.app.uploads import Limits
from dune_cli.errors import JobFailed

HOSTS = ("localhost",)


def photo() -> io.BytesIO:
    content = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(content, "PNG")
    content.seek(0)
    return content


def depth(job: jobs.AppJob, path: Path) -> jobs.Shown:
    (job.folder / f"{path.stem}.txt").write_text("deep")
    return jobs.Shown("Depth", "1 m", files=[f"{path.stem}.txt"])


def people(job: jobs.AppJob, path: Path) -> jobs.Shown:
    raise JobFailed("nobody can be fitted")


def classes(job: jobs.AppJob, path: Path) -> jobs.Shown:
    raise ZeroDivisionError("a bug")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppState:
    monkeypatch.setattr(jobs, "PHOTO_TASKS", {"depth": depth, "people": people, "classes": classes})
    return AppState(tmp_path, Limits(files=3, total_bytes=2_000_000), jobs.Worker())


@pytest.fixture
def client(state: AppState) -> Iterator[Any]:
    with make_app(state, "secret", HOSTS).test_client() as client:
        yield client


def post(client: Any, tasks: list[str], count: int = 1, **more: str) -> Any:
    files = [(photo(), f"{k}.png") for k in range(count)]
    return client.post("/secret/jobs", data={"task": tasks, "file": files, **more})


def ended(client: Any, number: int) -> dict[str, Any]:
    for _ in range(600):
        job = client.get(f"/secret/jobs/{number}").json
        if job["state"] in ("done", "stopped"):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_only_its_own_address_answers(client: Any) -> None:
    page = client.get("/secret/")
    assert page.status_code == 200 and b"Drop photos" in page.data
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert b"http://" not in page.data and b"https://" not in page.data  # nothing of elsewhere
    assert client.get("/").status_code == client.get("/other/").status_code == 404
    assert client.get("/secret/", headers={"Host": "dune.example"}).status_code == 404
    assert post(client, ["depth"]).status_code == 200
    foreign = {"Origin": "http://dune.example"}
    assert client.post("/secret/jobs", data={}, headers=foreign).status_code == 404


def test_a_job_goes_on_past_what_fails_and_its_files_can_be_had(client: Any, state: AppState) -> None:
    number = post(client, ["people", "depth"], 2).json["number"]
    job = ended(client, number)
    assert (job["state"], job["done"], job["total"]) == ("done", 4, 4)
    assert [(one["title"], one["failed"]) for one in job["shown"]][::2] == [("Depth", False), ("People: 0.png", True)]
    address = job["shown"][0]["files"][0]["address"]
    answer = client.get(f"/secret/{address}?download")
    assert answer.data == b"deep" and "attachment" in answer.headers["Content-Disposition"]
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/secret/jobs/{number}/all.zip").data))
    assert archive.namelist() == ["0.txt", "1.txt"]
    for name in ("..%2fphotos%2f0.png", "../photos/0.png", "x.txt"):
        assert client.get(f"/secret/jobs/{number}/files/{name}").status_code == 404
    client.delete(f"/secret/jobs/{number}")
    assert client.get(f"/secret/jobs/{number}").status_code == 404 and not list(state.folder.iterdir())


def test_a_job_tells_of_its_step_and_ends_in_it_when_stopped(
    client: Any, state: AppState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(job: jobs.AppJob, path: Path) -> jobs.Shown:
        for _ in console.progress(range(10_000), "counting", unit="photo"):
            time.sleep(0.01)
        raise AssertionError("not stopped")

    monkeypatch.setitem(jobs.PHOTO_TASKS, "depth", slow)
    number = post(client, ["depth"]).json["number"]
    for _ in range(600):
        step = client.get(f"/secret/jobs/{number}").json["step"]
        if "counting" in step:
            break
        time.sleep(0.05)
    assert step.startswith("Depth: 0.png (counting: ") and step.endswith(" of 10000 photos)")
    client.delete(f"/secret/jobs/{number}")
    job = ended(client, number)
    assert job["state"] == "stopped" and job["shown"] == [] and job["error"] == ""


def test_a_bug_ends_one_job_and_not_the_next(client: Any) -> None:
    first, second = post(client, ["classes"]).json["number"], post(client, ["depth"]).json["number"]
    assert ended(client, first)["error"] == "ZeroDivisionError: a bug"
    assert ended(client, second)["state"] == "done"


@pytest.mark.parametrize(
    "tasks, count, more, reason",
    [
        ([], 1, {}, "nothing was chosen"),
        (["scene"], 1, {}, "two photos of the same place"),
        (["pose"], 3, {}, "3 files were given; give two"),
        (["depth"], 4, {}, "at most 3"),
        (["depth"], 1, {"fov_deg": "x"}, "'x' is not between 1 and 170 degrees"),
    ],
)
def test_refusals(
    client: Any, state: AppState, tasks: list[str], count: int, more: dict[str, str], reason: str
) -> None:
    answer = post(client, tasks, count, **more)
    assert answer.status_code == 400 and reason in answer.json["error"]
    assert not list(state.folder.iterdir())


def test_too_much_is_refused(client: Any) -> None:
    answer = client.post("/secret/jobs", data={"task": "depth", "file": (io.BytesIO(bytes(3_100_000)), "a.png")})
    assert answer.status_code == 413 and "more than 2 MB together" in answer.json["error"]


def test_the_oldest_results_go(client: Any, state: AppState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dune_cli.app.server.MOST_JOBS", 1)
    for number in (1, 2):
        assert post(client, ["depth"]).json["number"] == number
        ended(client, number)
    assert [folder.name for folder in state.folder.iterdir()] == ["2"]
