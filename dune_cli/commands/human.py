"""`dune human`: people in a photo as meshes (OBJ, GLB, PLY) and parameters (JSON)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.tasks.human import HumanModel, PhotoPeople

DEFAULT_MODEL = "multihmr-672-l-anny"


@click.command()
@click.argument("photo", metavar="PHOTO")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME|FILE",
    help="Multi-HMR on Anny or SMPL-X: a name of 'dune weights list', or a weight file.",
)
@click.option(
    "--body-models",
    metavar="DIR",
    help="Folder with smplx/SMPLX_NEUTRAL.npz, for files on SMPL-X.  [default: the weights folder]",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Least confidence in [0, 1] of a person's head.",
)
@click.option(
    "--select",
    "which",
    default="all",
    show_default=True,
    metavar="largest|N|all",
    help="Whom to keep: the largest in the photo, the N largest, or all.",
)
@click.option("--overlay", metavar="PNG", help="The photo with the bodies laid over it.")
@click.option("--top-view", metavar="PNG", help="The people from above, on a grid in metres.")
@options.cameras
@options.compute
@options.output(False, "Meshes in metres: .obj (one group a person), .glb (with the camera) or .ply.")
@options.as_json
@options.common
def command(
    photo: str,
    model: str,
    body_models: str | None,
    min_score: float,
    which: str,
    overlay: str | None,
    top_view: str | None,
    intrinsics: str | None,
    fov_deg: float | None,
    device: str,
    dtype: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """People in a photo as bodies in metres, in front of its camera (x right, y down, z forward).

    Writes meshes and, beside them, a JSON with each person's pose, shape, position and joints; all pixels are those of
    the photo. Without --intrinsics, --fov-deg or EXIF, the Anny model predicts the camera and the SMPL-X ones assume 60
    degrees across the long side. A photo without people gives an empty list and exit code 0.

    \b
    Example: dune human photo.jpg -o people.obj --overlay overlay.png
             dune human photo.jpg --model multihmr-896-l --body-models ~/models --select largest -o person.glb
             dune human photo.jpg --json > people.json
    """
    targets = _targets(output, overlay, top_view, as_json, overwrite)

    from dune_cli.io.jsons import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks import human

    human.parse_selection(which)
    run = Run()
    with run.stage("read"):
        image = read_photo(photo)
    ((K, source),) = human.cameras([image], intrinsics, fov_deg)
    with run.stage("load"):
        people_model = human.load_human(model, body_models, device=device, dtype=dtype)
    for used in (people_model.source, people_model.body.source):
        console.note(f"{used.name}, licence: {used.licence}")
    with run.stage("predict"):
        found = human.predict(people_model, image, K, source, min_score)
    kept = human.select(found, which)
    _say(found, kept, min_score)
    with run.stage("write"):
        _write(people_model, kept, targets)
    sources = [people_model.source, people_model.body.source]
    provenance = run.provenance(sources, [(image.path, image.sha256)], dtype=dtype, units="metre", axes="OpenCV")
    report = human.document(people_model, kept, targets.get("mesh"), provenance)
    if "mesh" in targets:
        write_json(targets["mesh"].with_suffix(".json"), report)
    if as_json:
        click.echo(dumps(report))
    else:
        for path in targets.values():
            click.echo(path)


def _targets(
    output: str | None, overlay: str | None, top_view: str | None, as_json: bool, overwrite: bool
) -> dict[str, Path]:
    """What to write and where, checked before the work: "mesh", "overlay", "top view"."""
    from dune_cli.io.atomic import check_output

    wanted = {
        "mesh": (output, (".obj", ".glb", ".ply")),
        "overlay": (overlay, (".png",)),
        "top view": (top_view, (".png",)),
    }
    targets = {
        name: check_output(path, suffixes, overwrite) for name, (path, suffixes) in wanted.items() if path is not None
    }
    if "mesh" in targets:
        check_output(targets["mesh"].with_suffix(".json"), (".json",), overwrite)
    if not targets and not as_json:
        raise UserError("nothing to write: give -o FILE (.obj .glb .ply), --overlay, --top-view or --json")
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise UserError("--overlay and --top-view name the same file; give them two")
    return targets


def _say(found: PhotoPeople, kept: PhotoPeople, min_score: float) -> None:
    if not found.people:
        console.note(f"nobody found in {found.photo.path} with a score of at least {min_score:g}")
        return
    left_out = len(found.people) - len(kept.people)
    distances = ", ".join(f"{float(person.head[2]):.2f} m" for person in kept.people[:5])
    more = ", ..." if len(kept.people) > 5 else ""
    besides = f"; {left_out} left out by --select" if left_out else ""
    console.note(f"{len(kept.people)} {'person' if len(kept.people) == 1 else 'people'} at {distances}{more}{besides}")


def _write(model: HumanModel, found: PhotoPeople, targets: dict[str, Path]) -> None:
    from dune_cli.tasks import human

    meshes = human.meshes(model, found.people)
    if "mesh" in targets:
        human.write_meshes(targets["mesh"], meshes, found)
