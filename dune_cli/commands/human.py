"""`dune human`: people in photos and videos as meshes (OBJ, GLB, PLY) and parameters (JSON)."""

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
    from dune_cli.tasks.human import HumanModel, PhotoPeople

    Shot = tuple[Any, Any, Any]  # a photo, its camera K or None, and where that came from

FORMATS = [  # of those for scenes, default first
    name
    for name in sorted(plugins.names("dune_cli.io.formats", "write_scene"), key=lambda name: name != "obj")
    if "surface" in plugins.constant("dune_cli.io.formats", name, "CONTENT")
]


@click.command(cls=GroupedCommand)
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO...")
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="Multi-HMR on Anny or SMPL-X: a name of 'dune weights list', or a weight file.  "
    "[default: multihmr-672-l-anny, else the best that is here]",
)
@click.option(
    "--body-models",
    metavar="DIR",
    help="Folder with smplx/SMPLX_NEUTRAL.npz, for files on SMPL-X.  [default: the weights folder]",
)
@click.option(
    "--min-score",
    type=options.FiniteRange(0, 1),
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
@click.option("--overlay", metavar="PNG|FOLDER", help="The photo with the bodies laid over it.")
@click.option("--top-view", metavar="PNG|FOLDER", help="The people from above, on a grid in metres.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Of the meshes in a folder -o.  [default: obj]")
@options.fps
@options.cameras
@options.compute
@options.output(False, "Meshes: .obj (a group a person), .glb (with the camera), .ply; a folder for photos and videos.")
@options.as_json
@options.common
def command(
    photos: tuple[str, ...],
    model: str | None,
    body_models: str | None,
    min_score: float,
    which: str,
    overlay: str | None,
    top_view: str | None,
    kind: str | None,
    fps: float | None,
    intrinsics: str | None,
    fov_deg: float | None,
    device: str,
    dtype: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """People in photos and videos as bodies in metres, in front of the camera (x right, y down, z forward).

    PHOTOS are files, folders, globs and videos. Writes meshes and, beside them, a JSON with each person's pose, shape,
    place and joints; all pixels are those of the photo. Without --intrinsics, --fov-deg or EXIF, the Anny model
    predicts the camera and the SMPL-X ones assume 60 degrees across the long side. A photo without people gives an
    empty list and exit code 0.

    Of a video the folder -o holds one mesh file a frame, called by its place in the video (000000.obj, ...),
    frames.jsonl with the people of a frame a line (times in seconds), and video.json with what is common to all: one
    camera, the body, who was seen when. People keep their id, and its colour, by the places of their heads in metres;
    they may move up to 6 m/s and be unseen for up to a second. The camera should stand still or move slowly.

    \b
    Example: dune human photo.jpg -o people.obj --overlay overlay.png
             dune human photo.jpg --model multihmr-896-l --body-models ~/models -o people.glb
             dune human photos/ --format glb -o people/ --overlay overlays/
             dune human clip.mp4 --fps 10 -o people/ --overlay overlays/
             dune human photo.jpg --json > people.json
    """
    from dune_cli.io.inputs import expand, is_video

    paths = expand(photos, videos=True)
    videos.check_fps(fps, paths)
    targets = _targets(paths, output, kind, overlay, top_view, as_json, overwrite)

    model = checks.model_of("human", model)

    from dune_cli.io.intrinsics import one_by_one
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.video import frame_file
    from dune_cli.provenance import Run
    from dune_cli.tasks import human

    human.parse_selection(which)
    run = Run()

    def shots() -> Iterator[Shot]:
        for path, given in zip(paths, one_by_one(intrinsics, len(paths))):
            with run.stage("read"):
                photo = videos.read_first(path)
            yield photo, *human.cameras([photo], given, fov_deg)[0]

    ahead = shots()
    first = next(ahead)  # mistakes in photos and cameras show before gigabytes of weights are read
    with run.stage("load"):
        people_model = human.load_human(model, body_models, device=device, dtype=dtype)
    sources = [people_model.source, people_model.body.source]
    for used in sources:
        console.note(f"{used.name}, licence: {used.licence}")

    def provenance(photo: Photo) -> dict[str, Any]:
        return run.provenance(sources, [(photo.path, photo.sha256)], dtype=dtype, units="metre", axes="OpenCV")

    def video(first: Photo, K: Any, source: Any, folders: dict[str, Path]) -> dict[str, Any]:
        seen, camera = human.Sightings(), {}

        def write(frame: Frame, found: PhotoPeople) -> tuple[dict[str, Any], list[Path]]:
            kept = human.select(found, which)
            files = {name: frame_file(folder, frame.index, endings[name]) for name, folder in folders.items()}
            _write(people_model, kept, files)
            seen.add(frame, kept)
            document = human.photo_facts(kept, files["mesh"])
            camera.update(document["camera"])
            return document, list(files.values())

        def facts() -> dict[str, Any]:
            return {"camera": camera, "body_model": human.body_facts(people_model), "people": seen.facts()}

        if fps is not None and fps < 1:
            console.note("these frames are over a second apart, so nobody keeps an id from one to the next")
        predict = partial(human.predict_frames, people_model, K=K, source=source, min_score=min_score, run=run)
        about = partial(provenance, first)
        summary = videos.work("human", first, fps, folders["mesh"], run, predict, write, facts, about, not as_json)
        console.note(f"{first.path.name}: {len(summary['people'])} different people")
        return summary

    endings = {"mesh": kind or FORMATS[0], "overlay": "png", "top view": "png"}
    documents = []
    for (photo, K, source), wanted in videos.progress(zip(chain([first], ahead), targets), "human", paths):
        if is_video(photo.path):
            documents.append(video(photo, K, source, wanted))
            continue
        with run.stage("predict"):
            found = human.predict(people_model, photo, K, source, min_score)
        kept = human.select(found, which)
        _say(found, kept, min_score)
        with run.stage("write"):
            _write(people_model, kept, wanted)
        documents.append(human.document(people_model, kept, wanted.get("mesh"), provenance(photo)))
        if "mesh" in wanted:
            write_json(wanted["mesh"].with_suffix(".json"), documents[-1])
        if not as_json:
            for file in wanted.values():
                console.result(file)
    if as_json:
        console.document(dumps(documents[0] if len(documents) == 1 else documents))


def _targets(
    paths: list[Path],
    output: str | None,
    kind: str | None,
    overlay: str | None,
    top_view: str | None,
    as_json: bool,
    overwrite: bool,
) -> list[dict[str, Path]]:
    """What to write for each photo and where, checked before the work: "mesh", "overlay", "top view". A video's places
    are folders."""
    from dune_cli.io.inputs import is_video
    from dune_cli.io.outputs import places

    wanted: dict[str, list[Path]] = {}
    if output is not None:
        wanted["mesh"] = places(paths, output, kind, FORMATS, overwrite, (".json",))
    elif any(map(is_video, paths)):
        raise UserError("the people of a video go into a folder of files; name it with -o")
    elif kind is not None:
        raise UserError("--format is that of the files in a folder -o; name the folder with -o")
    for name, place in (("overlay", overlay), ("top view", top_view)):
        if place is not None:
            wanted[name] = places(paths, place, None, ("png",), overwrite)
    if not wanted and not as_json:
        raise UserError("nothing to write: give -o (.obj, .glb, .ply or a folder), --overlay, --top-view or --json")
    if {"overlay", "top view"} <= wanted.keys() and wanted["overlay"][0].resolve() == wanted["top view"][0].resolve():
        raise UserError(f"--overlay and --top-view would both write {wanted['overlay'][0]}; name two places")
    return [{name: files[k] for name, files in wanted.items()} for k in range(len(paths))]


def _say(found: PhotoPeople, kept: PhotoPeople, min_score: float) -> None:
    name = found.photo.path.name
    if not found.people:
        console.note(f"{name}: nobody found with a score of at least {min_score:g}")
        return
    distances = ", ".join(f"{float(person.head[2]):.2f} m" for person in kept.people[:5])
    more = ", ..." if len(kept.people) > 5 else ""
    left_out = len(found.people) - len(kept.people)
    besides = f"; {left_out} left out by --select" if left_out else ""
    word = "person" if len(kept.people) == 1 else "people"
    console.note(f"{name}: {len(kept.people)} {word} at {distances}{more}{besides}")


def _write(model: HumanModel, found: PhotoPeople, files: dict[str, Path]) -> None:
    from dune_cli.tasks import human

    writers = {"mesh": human.write_meshes, "overlay": human.write_overlay, "top view": human.write_top_view}
    meshes = human.meshes(model, found.people, found.ids)
    for name, path in files.items():
        writers[name](path, meshes, found)
