"""`dune depth`: photos and videos to depth in metres."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console, plugins
from dune_cli.commands import checks, options, videos
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.io.video import Frame
    from dune_cli.tasks.depth import Depth

FORMATS = sorted(plugins.names("dune_cli.io.formats", "write_depth"), key=lambda name: name != "png")  # default first
COLORMAPS = ("turbo", "inferno", "magma", "viridis", "grey")
COLOR_ENDING = "_color.png"


@click.command(cls=GroupedCommand, short_help="Photos and videos to depth in metres (16-bit PNG, NPZ, EXR, PLY).")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="A DINOv2 depth head or a two-view model: a name of 'dune weights list', or a weight file.  [default: the "
    "best one on this machine]",
)
@click.option(
    "--encoder", metavar="NAME|FILE", help="The head's DINOv2 encoder, or the DUNE encoder of a DUNE + MASt3R model."
)
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Of the files in a folder -o.  [default: png]")
@click.option(
    "--colormap",
    type=click.Choice(COLORMAPS),
    is_flag=False,
    flag_value=COLORMAPS[0],
    help="Also write a picture in colours, near bright, as NAME_color.png (alone: turbo).",
)
@click.option("--flip", is_flag=True, help="Mean with the mirrored photo's depth (twice the time).")
@click.option(
    "--depth-range",
    metavar="MIN,MAX",
    help="Range of a DINOv2 head, in metres.  [default: 0.001,10 for NYU heads, 0.001,80 for KITTI's]",
)
@options.fps
@options.cameras
@options.size
@options.compute
@options.output(True, "A .png, .npz, .exr or .ply for one photo, or a folder with one file a photo or frame.")
@options.as_json
@options.common
def command(
    images: tuple[str, ...],
    model: str | None,
    encoder: str | None,
    kind: str | None,
    colormap: str | None,
    flip: bool,
    depth_range: str | None,
    fps: float | None,
    intrinsics: str | None,
    fov_deg: float | None,
    size: int | None,
    device: str,
    dtype: str,
    output: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Photos and videos to depth: z in metres at every pixel of the photo.

    IMAGES are files, folders, globs and videos. PNG holds 16-bit depth times the JSON's png_scale (1000: millimetres),
    0 where there is none; NPZ and EXR float32 metres; PLY the back-projected, coloured points. A JSON with camera,
    range and provenance lies beside each. Without --intrinsics, --fov-deg and EXIF a two-view model's own points give
    the focal length. Default size: 640 px for NYU heads, 1216 for KITTI's, the standard one of a two-view model (long
    side).

    Of a video the folder holds one file a frame, called by its place in the video (000000.png, ...), frames.jsonl with
    a line a frame (times in seconds), and video.json with what is common to all. Its frames have one camera.

    \b
    Example: dune depth photo.jpg -o depth.png --colormap
             dune depth photo.jpg -o cloud.ply --model dinov2-vits14-nyu-dpt --fov-deg 65
             dune depth photos/ -o depths/ --format npz --model mast3r-vitl
             dune depth clip.mp4 -o depths/ --fps 5 --colormap
    """
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.outputs import places

    bounds = _bounds(depth_range)
    paths = expand(images, videos=True)
    videos.check_fps(fps, paths)
    outputs = places(paths, output, kind, FORMATS, overwrite, (".json", COLOR_ENDING) if colormap else (".json",))

    model = checks.model_of("depth", model, encoder)

    from dune_cli.checkpoints.loader import load_depth
    from dune_cli.io.intrinsics import one_by_one, resolve_intrinsics
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.outputs import sibling
    from dune_cli.io.video import frame_file
    from dune_cli.provenance import Run
    from dune_cli.tasks import depth as task

    run = Run()

    def shots() -> Iterator[tuple[Photo, tuple[Any, str]]]:
        for path, given in zip(paths, one_by_one(intrinsics, len(paths))):
            with run.stage("read"):
                photo = videos.read_first(path)
                camera = resolve_intrinsics([photo], given, fov_deg)[0]
            yield photo, camera

    ahead = shots()
    first = next(ahead)  # mistakes in photos and cameras show before the weights are read
    with run.stage("load"):
        network = load_depth(model, encoder, device, dtype, bounds)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")

    def provenance(photo: Photo) -> dict[str, Any]:
        axes = "OpenCV: x right, y down, z forward"
        return run.provenance(network.sources, [(photo.path, photo.sha256)], dtype=dtype, flip=flip, axes=axes)

    def video(first: Photo, camera: tuple[Any, str], folder: Path) -> dict[str, Any]:
        def write(frame: Frame, result: Depth) -> tuple[dict[str, Any], list[Path]]:
            file = frame_file(folder, frame.index, kind or FORMATS[0])
            return task.document(result, file, _write(result, file, colormap), {}), [file]

        predict = partial(task.predict_frames, network, camera=camera, size_px=size, flip=flip, run=run)
        about = partial(provenance, first)
        return videos.work("depth", first, fps, folder, run, predict, write, dict, about, not as_json)

    documents: list[dict[str, Any]] = []
    for (photo, camera), target in videos.progress(zip(chain([first], ahead), outputs), "depth", paths):
        if is_video(photo.path):
            documents.append(video(photo, camera, target))
            continue
        result = task.predict(network, photo, camera, size, flip, run)
        with run.stage("write"):
            facts = _write(result, target, colormap)
        documents.append(task.document(result, target, facts, provenance(photo)))
        write_json(sibling(target, ".json"), documents[-1])
        if not as_json:
            console.result(target)
    if as_json:
        console.document(dumps(documents[0] if len(documents) == 1 else documents))


def _write(result: Depth, target: Path, colormap: str | None) -> dict[str, Any]:
    """Writes the depth, and with `colormap` its picture; what the JSON says of them."""
    from dune_cli.io.depth_files import colored
    from dune_cli.io.outputs import sibling
    from dune_cli.io.png import save_png
    from dune_cli.tasks import depth as task

    facts = task.write(result, target)
    if colormap:
        picture = sibling(target, COLOR_ENDING)
        save_png(picture, colored(result.depth, colormap))
        facts["colormap"] = {"file": picture.name, "name": colormap}
    return facts


def _bounds(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high < float("inf"):
        raise UserError(f"--depth-range {text!r} is no range; give MIN,MAX in metres, such as 0.001,10")
    return low, high
