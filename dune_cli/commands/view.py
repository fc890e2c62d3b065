"""`dune view`: results in a page of this machine's browser."""

from __future__ import annotations

import os
import sys
import threading

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import option

PORT = 8080
MOST_POINTS = 1_000_000
EXPORTS = (".html",)


@options.group("Output")
class PageOptions:
    port: int = option(
        "--port PORT",
        "Port of the page, on 127.0.0.1; the next free one is taken. 0: any.",
        click.IntRange(0, 65535),
        PORT,
    )
    no_browser: bool = option("--no-browser", "Do not open a browser; the address is printed.")
    export: str | None = option("--export PAGE.html", "Write the scene as one HTML file instead, and end.")
    most_points: int = option(
        "--max-points N", "Number of points that are shown of a result.", options.COUNT, MOST_POINTS
    )
    overwrite: bool = option("--overwrite", "Replace existing output files.")


@options.verb()
def command(
    *,
    files: tuple[str, ...] = options.argument(
        "FILE...",
        "Scenes, people or depth: .ply, .glb, .obj, .npz, .png, or their .json; or folders.",
        nargs=-1,
        required=True,
    ),
    page: PageOptions,
) -> None:
    """View results in a browser.

    Opens a page of this machine (127.0.0.1 only, nothing from the network) with points, surfaces, and the cameras with
    their photos. The controls measure the distance between two clicks, colour by normal, height or confidence, crop to
    a box, and save a screenshot. Several files are shown together, in their common coordinates; of a folder one result
    at a time. Ctrl-C ends the page.

    --export writes one HTML file that opens in any browser without a network: the scene, without the controls.
    Needs the package viser: pip install 'dune-cli[view]'.

    \b
    Example: dune view scene.ply
             dune view scene.ply people.glb --port 8090 --no-browser
             dune view depth.npz --export depth.html
             dune view results/
    """
    from dune_cli.io.outputs import check_output
    from dune_cli.io.results import result_files

    target = None if page.export is None else check_output(page.export, EXPORTS, page.overwrite)
    paths = result_files(files)

    from dune_cli.tasks.view.page import PageSettings, open_page

    together = len(files) > 1 or len(paths) == 1
    settings = PageSettings(page.port if target is None else 0, page.most_points, together)
    shown = open_page(paths, settings)
    try:
        if target is not None:
            shown.export(target)
            console.result(target)
            return
        console.result(shown.url)
        console.note("Ctrl-C ends the page")
        if not page.no_browser:
            open_browser(shown.url)
        console.rest()
        threading.Event().wait()
    finally:
        shown.close()


def open_browser(address: str) -> None:
    """Opens a page in the browser of this machine, if there is one with a window."""
    if _has_screen():
        import webbrowser

        webbrowser.open(address)


def _has_screen() -> bool:
    """Whether a browser can open a window; elsewhere Python would start one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
