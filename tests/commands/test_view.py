"""`dune view`: a page on 127.0.0.1 that ends by SIGTERM, one HTML file, and what a browser shows of them."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli import optional
from dune_cli.errors import PackageMissing
from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.ply import write_ply
from dune_cli.io.meshes import Frustum, Mesh
from support.command_line import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
GRAPHICS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
CAMERA = Frustum(np.array([[40.0, 0, 19.5], [0, 40, 14.5], [0, 0, 1]]), np.eye(4), 40, 30, "a.png")
SQUARE = np.array([[-1.0, -1, 4], [1, -1, 4], [1, 1, 4], [-1, 1, 4]])
RED = np.full((4, 3), (255, 0, 0), np.uint8)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red square of 2 x 2 before a camera, and points at its corners."""
    path = tmp_path_factory.mktemp("view") / "scene.glb"
    write_glb(path, [Mesh(SQUARE, np.array([[0, 1, 2], [0, 2, 3]]), RED)], SQUARE, RED, [CAMERA])
    return path


@pytest.fixture
def served(scene: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process of its own, and the address that it prints."""
    pytest.importorskip("viser", reason="the extra 'view' is not installed")
    words = [sys.executable, "-m", "dune_cli.cli", "view", str(scene), "--port", "0", "--no-browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        yield process, address or process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_the_page_is_on_this_machine_only_and_ends_by_sigterm(served: tuple[Any, str]) -> None:
    process, address = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address), address
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.status == 200 and b"<html" in answer.read()
    port = int(address.rpartition(":")[2])
    if Path("/proc/net/tcp").exists():  # local addresses of listening sockets, in hexadecimal
        rows = [
            line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]
        ]
        bound = {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
        assert bound == {f"0100007F:{port:04X}"}
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and output == "" and "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def exported(scene: Path) -> Path:
    pytest.importorskip("viser", reason="the extra 'view' is not installed")
    page = scene.with_name("page.html")
    done = run("view", scene, "--export", page)
    assert (done.returncode, done.stdout) == (0, f"{page}\n"), done.stderr
    return page


def test_the_exported_page_names_nothing_outside_itself(exported: Path) -> None:
    text = exported.read_text(encoding="utf-8")
    assert "<title>scene.glb</title>" in text and len(text) > 100_000
    assert set(re.findall(r"https?://[^\s'\"<>)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?!data:)", text)
    done = run("view", exported.with_name("scene.glb"), "--export", exported)
    assert done.returncode == 2 and "add --overwrite" in done.stderr


def test_measuring_colours_cropping_and_choosing(scene: Path, tmp_path: Path) -> None:
    """In this process, by what the page's controls call."""
    pytest.importorskip("viser", reason="the extra 'view' is not installed")
    from dune_cli.tasks.view.page import PageSettings, open_page

    far = np.array([5e6, 4e5, 30.0])
    write_ply(tmp_path / "far.ply", SQUARE + far, RED, np.arange(4.0), double=True)
    page = open_page([scene, tmp_path / "far.ply"], PageSettings(0, 3, together=False))
    try:
        eye = np.zeros(3)
        assert page.shown == ["scene.glb"] and len(page.layers["scene.glb"].data.points) == 3  # thinned out
        assert page.measure(eye, np.array([0.0, 1, 0])) is None  # nothing is there
        assert page.measure(eye, np.array([-0.1, 0, 4])) is None  # the first mark
        assert page.measure(eye, np.array([0.4, 0, 4])) == pytest.approx(0.5)
        nodes = page.server.scene._handle_from_node_name
        assert {"/scene.glb/points", "/scene.glb/surface", "/scene.glb/cameras/0", "/measure/line"} <= set(nodes)
        page._change(coloring="height", cameras=False, box=np.array([[-2.0, -2, 0], [2, 0, 9]]))
        assert "/scene.glb/cameras/0" not in nodes and "/scene.glb/surface" not in nodes and "/crop_box" in nodes
        assert nodes["/scene.glb/points"].points.shape[0] <= 2
        page._choose("far.ply")
        assert "/scene.glb/points" not in nodes and page.look.box is None
        assert page.server.request_share_url() is None  # no tunnel
    finally:
        page.close()
    alone = open_page([tmp_path / "far.ply"], PageSettings(0))
    try:
        shown = alone.server.scene._handle_from_node_name["/far.ply/points"].points
        assert np.abs(shown).max() < 10 and np.ptp(shown[:, 0]) == pytest.approx(2)  # near 0, where float32 is fine
    finally:
        alone.close()


def test_without_viser_a_sentence_says_what_to_install(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(why: str) -> None:
        raise PackageMissing(
            f"{why} needs the package viser, which is not installed; run: pip install 'dune-cli[view]'"
        )

    monkeypatch.setattr(optional, "import_viser", missing)
    done = run("view", scene, "--no-browser")
    assert done.returncode == 4 and "pip install 'dune-cli[view]'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt install chromium)")
def test_a_browser_draws_the_scene_and_asks_nobody_else(served: tuple[Any, str], exported: Path) -> None:
    """Headless Chromium, which draws by software: the red square is on both pages."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    _, address = served
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=[*GRAPHICS])
        for url in (address, exported.as_uri()):
            page = browser.new_page(viewport={"width": 480, "height": 320})
            page.set_default_timeout(300_000)
            asked, errors = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto(url)
            _wait_for_red(page)
            others = [one for one in asked if not one.startswith(("data:", "blob:", url))]
            assert others == [] and errors == []
            page.close()
        browser.close()


def _wait_for_red(page: Any) -> None:
    for _ in range(120):
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
        if red.mean() > 0.01:
            return
        page.wait_for_timeout(500)
    folder = os.environ.get("DUNE_TESTS_SHARED", ".")
    Image.fromarray(pixels.astype(np.uint8)).save(Path(folder) / "view.png")
    raise AssertionError(f"the page does not show the red square; see {folder}/view.png")
