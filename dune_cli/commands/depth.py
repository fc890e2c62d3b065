"""`dune depth`: photos to depth in metres."""

from __future__ import annotations

from typing import Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.errors import UserError

FORMATS = ("png", "npz", "exr", "ply")
COLORMAPS = ("turbo", "inferno", "magma", "viridis", "grey")


@click.command(short_help="Photos to depth in metres (16-bit PNG, NPZ, EXR, PLY).")
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
@options.cameras
@options.size
@options.compute
@options.output(True, "A .png, .npz, .exr or .ply for one photo, or a folder with one file a photo.")
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
    intrinsics: str | None,
    fov_deg: float | None,
    size: int | None,
    device: str,
    dtype: str,
    output: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Photos to depth: z in metres at every pixel of the photo.

    IMAGES are files, folders and globs. PNG holds 16-bit depth times the JSON's png_scale (1000: millimetres), 0 where
    there is none; NPZ and EXR float32 metres; PLY the back-projected, coloured points. A JSON with camera, range and
    provenance lies beside each. Without --intrinsics, --fov-deg and EXIF a two-view model's own points give the focal
    length. Default size: 640 px for NYU heads, 1216 for KITTI's, the standard one of a two-view model (long side).

    \b
    Example: dune depth photo.jpg -o depth.png --colormap
             dune depth photo.jpg -o cloud.ply --model dinov2-vits14-nyu-dpt --fov-deg 65
             dune depth photos/ -o depths/ --format npz --model mast3r-vitl
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.targets import sibling, targets

    bounds = _bounds(depth_range)
    paths = expand(images)
    cameras = _Cameras(len(paths), intrinsics, fov_deg)
    color_ending = "_color.png"
    beside = (".json", color_ending) if colormap else (".json",)
    outputs = targets(paths, output, kind, FORMATS, overwrite, beside)

    from dune_cli.checkpoints.load_heads import load_depth
    from dune_cli.checkpoints.present import choose
    from dune_cli.io.depth_files import colored
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.jsons import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.io.png import save_png
    from dune_cli.provenance import Run
    from dune_cli.tasks import depth as task

    run = Run()
    with run.stage("load"):
        network = load_depth(model or choose("depth"), encoder, device, dtype, bounds)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")
    documents: list[dict[str, Any]] = []
    for path, target in zip(console.progress(paths, "depth", unit="photo"), outputs):
        with run.stage("read"):
            photo = read_photo(path)
            camera = resolve_intrinsics([photo], cameras.of(len(documents)), fov_deg)[0]
        result = task.predict(network, photo, camera, size, flip, run)
        with run.stage("write"):
            facts = task.write(result, target)
            if colormap:
                picture = sibling(target, color_ending)
                save_png(picture, colored(result.depth, colormap))
                facts["colormap"] = {"file": picture.name, "name": colormap}
        provenance = run.provenance(
            network.sources,
            [(photo.path, photo.sha256)],
            dtype=dtype,
            flip=flip,
            axes="OpenCV: x right, y down, z forward",
        )
        documents.append(task.document(result, target, facts, provenance))
        write_json(sibling(target, ".json"), documents[-1])
        if not as_json:
            click.echo(target)
    if as_json:
        click.echo(dumps(documents[0] if len(documents) == 1 else documents))


class _Cameras:
    """`--intrinsics` for photos that are read one by one: the camera of each."""

    def __init__(self, count: int, intrinsics: str | None, fov_deg: float | None) -> None:
        if intrinsics is not None and fov_deg is not None:
            raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
        groups = [] if intrinsics is None else [group for group in intrinsics.split(";") if group.strip()]
        if len(groups) > 1 and len(groups) != count:
            raise UserError(
                f"--intrinsics holds {len(groups)} cameras for {count} images; give one for all, or one an image"
            )
        self._each = groups if len(groups) > 1 else [intrinsics] * count

    def of(self, index: int) -> str | None:
        return self._each[index]


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
