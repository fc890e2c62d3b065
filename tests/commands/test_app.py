"""`dune app` as a process: its page in a browser, and that nothing stays."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The command, its address, and the folder in which its own folder is."""
    pytest.importorskip("flask", reason="the extra 'app' is not installed")
    pytest.importorskip("viser", reason="the extra 'app' is not installed")
    words = [sys.executable, "-m", "dune_cli.cli", "app", "--port", "0", "--no-browser"]
    settings = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    try:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        yield process, address or process.stderr.read(), tmp_path
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_ends_by_sigterm_and_the_uploads_go(served: tuple[Any, str, Path], example_photos: Path) -> None:
    process, address, folder = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", address), address
    (own,) = folder.glob("dune-app-*")
    assert own.stat().st_mode & 0o777 == 0o700
    if CHROMIUM is not None:
        in_the_browser(address, example_photos / "coffee.png")
        assert list(own.glob("*/photos/coffee.png"))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors, errors
    assert not list(folder.glob("dune-app-*"))


def in_the_browser(address: str, photo: Path) -> None:
    """Headless Chromium: a photo is chosen, its classes are shown, and nobody else is asked."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.check("input[value=scene]")
        assert page.is_disabled("#start") and page.inner_text("#why") == "Drop a photo first."
        page.set_input_files("#pick", photo)
        assert "two photos" in page.inner_text("#why")
        page.uncheck("input[value=scene]")
        page.uncheck("input[value=depth]")
        page.check("input[value=classes]")
        page.click("#start")
        page.wait_for_selector(".result")
        assert "espresso" in page.inner_text(".result")
        assert page.inner_text(".job h2") in ("Job 1: running", "Job 1: done")
        browser.close()
    assert errors == [] and {url for url in asked if not url.startswith((address, "blob:"))} == set()
