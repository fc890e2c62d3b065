"""`dune app`: a page of this machine's browser that photos are dropped on."""

from __future__ import annotations

import threading

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import option
from dune_cli.commands.view import open_browser

PORT = 8100


@options.group("Output")
class AppOptions:
    port: int = option("--port PORT", "Port of the page, on 127.0.0.1. 0: any.", click.IntRange(0, 65535), PORT)
    no_browser: bool = option("--no-browser", "Do not open a browser; the address is printed.")
    most_files: int = option("--max-files N", "Number of files of one upload.", options.COUNT, 50, heading="Input")
    most_mb: int = option("--max-mb N", "Size of one upload, in megabytes.", options.COUNT, 500, heading="Input")
    most_photos: int = option(
        "--max-photos N",
        "Number of photos of one upload that are worked on, with frames of videos; evenly spread.",
        options.COUNT,
        40,
        heading="Input",
    )


@options.verb()
def command(*, app: AppOptions) -> None:
    """Drop photos on a page, and look at what dune makes of them.

    Opens a page of this machine (127.0.0.1 only, nothing from the network) for photos and videos: depth, people,
    segments, classes, a scene, or the pose of one photo to another, by the models that --help of these commands names
    as their defaults. It shows the progress, pictures and scenes in three dimensions, and gives the files. A video
    stands for two frames a second. Jobs are done one after the other.

    The printed address has a secret in it, so that other users of this machine and other pages cannot open it. Uploads
    and results stay in a private folder, which is deleted when the command ends (Ctrl-C): download what is to stay.
    Needs the package viser: pip install 'dune-cli[app]'.

    \b
    Example: dune app
             dune app --port 8200 --no-browser --max-mb 2000
    """
    from dune_cli import optional

    optional.require("flask", "dune app", extra="app")
    optional.require("viser", "dune app", extra="app")

    from dune_cli.app.jobs import Worker
    from dune_cli.app.server import AppState, serve
    from dune_cli.app.uploads import MB, Limits, private_folder

    limits = Limits(app.most_files, app.most_mb * MB, app.most_photos)
    with private_folder() as folder:
        server, address = serve(AppState(folder, limits, Worker()), app.port)
        try:
            console.result(address)
            console.note("Ctrl-C ends the page and deletes what was uploaded")
            if not app.no_browser:
                open_browser(address)
            console.rest()
            threading.Event().wait()
        finally:
            server.shutdown()
