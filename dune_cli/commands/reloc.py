"""`dune reloc`: the camera pose of a photo relative to reference photos or in a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.map_localization import AXES, MapOptions, RelocMatching, locate_in_map
from dune_cli.commands.matching import solver_option
from dune_cli.commands.options import BaselineCameras, CameraOptions, SeededOptions, option
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.errors import JobFailed, UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.sfm.multi_reference import MultiReferencePose
    from dune_cli.sfm.relative_pose import CameraImage

NEEDS = ("numpy", "torch", "cv2", "PIL")


@options.group("Input")
class ReferenceOptions:
    ref_depths: tuple[str, ...] = option(
        "--ref-depth FILE",
        "Depth map of the reference, of its size: 16-bit PNG, or NPZ as dune depth writes it. Repeated for each "
        "reference, in their order.",
        multiple=True,
    )
    depth_scale: float | None = option(
        "--depth-scale N",
        "PNG values per metre of --ref-depth.",
        options.POSITIVE_NUMBER,
        default_text="from the JSON file beside it, else 1000",
    )
    solver: str | None = solver_option()


@options.verb()
def command(
    *,
    query: str = options.argument("QUERY", "Photo to localize; with --map also a folder or a video."),
    references: tuple[str, ...] = options.argument(
        "REFERENCE...", "Reference photos; with --map further queries.", nargs=-1
    ),
    map_options: MapOptions,
    reference_options: ReferenceOptions,
    matching: RelocMatching,
    cameras: BaselineCameras,
    compute: SeededOptions,
    output: PreviewedOutput = options.adapt(
        preview=options.changed(
            PreviewedOutput,
            "preview",
            help="Also write the matches with the best reference beside -o, as NAME_preview.png.",
            default_text="no preview",
        ),
        output=options.output_to("a .json file; with --map also .jsonl, one line per query."),
    ),
) -> None:
    """Estimate the camera pose of a photo relative to other photos, or in a map.

    The pose of QUERY is given in the frame of the camera of each REFERENCE (x right, y down, z forward). The
    translation is the centre of the query camera: in metres with a two-view --model, --ref-depth or --baseline, else a
    direction of length 1. Several references give one joint pose in the frame of the best one, and one candidate pose
    each in the JSON. The exit code is 1, with the reason, for photos of different places, for the same photo twice, and
    for a pure rotation without known scale.

    With --map all photos are queries, and each pose is in the world frame of the map, with its covariance. The exit
    code is 1 if no query is localized. The covariance includes the uncertainty of the map's own cameras if the map is,
    or has in its folder, a scene.json of dune reconstruct. The JSON says whether it does. Landmarks of the map are
    cached in its folder dune-work. A run with -o poses.jsonl that was stopped goes on when it is started again. The
    frames of a video are queries, and with --sequence so are the photos of a folder: each helps to localize the next
    one. A pose that does not fit the motion of the frames beside it is marked in the JSON.

    \b
    Example: dune reloc query.jpg reference.jpg --fov-deg 65
             dune reloc query.jpg reference.jpg --ref-depth reference_depth.png -o pose.json --preview
             dune reloc query.jpg one.jpg two.jpg --model dunemast3r-vitb --json
             dune reloc --map colmap/ --images photos/ queries/ -o poses.jsonl
             dune reloc --map colmap/ clip.mp4 --fps 2 --workers 4 -o poses.jsonl
             dune reloc --map colmap/ frames/ --sequence -o poses.jsonl
    """
    if map_options.map_folder is None:
        map_options.refuse_without_map()
        if not references:
            raise click.UsageError("Missing argument 'REFERENCE...' (or --map DIR)")
        locate_by_references(query, references, reference_options, matching, cameras, compute, output)
        return
    given = {
        "--solver": reference_options.solver,
        "--ref-depth": reference_options.ref_depths or None,
        "--depth-scale": reference_options.depth_scale,
        "--baseline": cameras.baseline,
        "--size": matching.size,
        "--preview": output.preview or None,
    }
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} applies only without --map; leave it out")
    locate_in_map((query, *references), map_options, matching, cameras, compute, output)


def locate_by_references(
    query: str,
    references: Sequence[str],
    reference_options: ReferenceOptions,
    matching: RelocMatching,
    cameras: BaselineCameras,
    compute: SeededOptions,
    output: PreviewedOutput,
) -> None:
    """Prints and writes the poses; JobFailed where there is none."""
    from dune_cli.io.inputs import expand
    from dune_cli.io.json_files import write_json
    from dune_cli.provenance import sha256_of

    paths = expand([query]), expand(references)
    if len(paths[0]) != 1:
        raise UserError(f"one query photo is needed, {query} names {len(paths[0])}; name a single file")
    metric = matching.model is not None or bool(reference_options.ref_depths)
    _check_options(reference_options, matching, cameras.baseline, len(paths[1]))
    target = output.file(".json")
    preview = _preview_file(target, output)
    matching.check_present()

    from dune_cli.sfm import multi_reference, relative_pose
    from dune_cli.tasks import reloc

    run = Run(seed=compute.seed)
    with run.stage("read"):
        images = _read_images([*paths[0], *paths[1]], cameras, reference_options)
    with run.stage("load"):
        backend = matching.load_pair_backend(compute, matching.size)
    solver = reference_options.solver or ("pnp" if metric else "essential")
    config = relative_pose.SolverConfig(solver, cameras.baseline, matching.least_confidence(), compute.seed)
    results, matches, features = [], [], []
    with run.stage("look"):
        query_features, *first = backend.extract_all(images[:2])
    for image in console.progress(images[1:], "reloc", unit="reference"):
        with run.stage("look"):
            features.append(first.pop() if first else backend.extract(image))
        with run.stage("match"):
            try:
                matches.append(backend.match(features[-1], query_features))
            except JobFailed as error:
                matches.append(None)
                results.append(relative_pose.failed_relocalization(image, images[0], config, str(error), metric))
                continue
        with run.stage("pose"):
            results.append(relative_pose.relocalize(matches[-1], config))
    joint = None
    if len(features) > 1:
        with run.stage("joint"):
            joint = multi_reference.localize_from_references(
                backend, features, query_features, matches, results, config
            )
    best = reloc.best_of(results) if joint is None else joint.pose
    if "default" in (best.query.focal_source, best.reference.focal_source):
        console.note(
            "the focal length is a guess (55 degrees across the long side), and so is the pose; give --intrinsics or "
            "--fov-deg"
        )
    depths = [Path(name).expanduser() for name in reference_options.ref_depths]
    provenance = run.provenance(
        [backend.source],
        [(image.photo.path, image.photo.sha256) for image in images] + [(path, sha256_of(path)) for path in depths],
        units="metre" if best.scale == "metric" else "baseline",
        axes=AXES,
    )
    document = reloc.document(results, provenance, joint)
    if preview is not None:
        from dune_cli import previews

        shown = reloc.best_of(results)
        document["preview"] = previews.save(previews.match_picture(matches[results.index(shown)], shown), preview)
    if target is not None:
        write_json(target, document)
    if not output.as_json:
        _print_poses(results, joint, target)
    output.print_json([document])
    if not best.success:
        raise JobFailed(best.message if len(results) == 1 else f"none of {len(results)} references: {best.message}")


def _preview_file(target: Path | None, output: PreviewedOutput) -> Path | None:
    """Where the preview goes, if one is wanted. UserError without -o."""
    from dune_cli.io.outputs import check_output, sibling

    if not output.preview:
        return None
    if target is None:
        raise UserError("--preview goes beside the file of -o; name one, such as -o pose.json")
    return check_output(sibling(target, PREVIEW), (".png",), output.overwrite)


def _check_options(given: ReferenceOptions, matching: RelocMatching, baseline: float | None, references: int) -> None:
    """UserError for options that contradict each other."""
    matching.check_combination(matching.size)
    scales = {"--model": matching.model, "--ref-depth": given.ref_depths or None, "--baseline": baseline}
    named = [name for name, value in scales.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} each set the length of the translation; give one of them")
    if given.ref_depths and len(given.ref_depths) != references:
        raise UserError(
            f"{len(given.ref_depths)} depth maps for {references} references; give --ref-depth once for each"
        )
    if given.depth_scale is not None and not given.ref_depths:
        raise UserError("--depth-scale belongs to --ref-depth; give both or none")
    if baseline is not None and references > 1:
        raise UserError(f"--baseline is the distance to one reference, {references} were named; name one")
    if given.solver == "pnp" and matching.model is None and not given.ref_depths:
        raise UserError("--solver pnp needs points in metres: give --ref-depth of the reference, or a two-view --model")


def _read_images(paths: Sequence[Path], cameras: CameraOptions, given: ReferenceOptions) -> list[CameraImage]:
    """The query and the references with their cameras and depth maps."""
    from dune_cli.io.depth_files import read_depth
    from dune_cli.io.photos import read_photo
    from dune_cli.sfm.relative_pose import CameraImage

    photos = [read_photo(path) for path in paths]
    known = cameras.resolve_cameras(photos)
    maps = [read_depth(path, given.depth_scale) for path in given.ref_depths]
    for photo, depth, name in zip(photos[1:], maps, given.ref_depths):
        if depth.shape != (photo.height, photo.width):
            raise UserError(
                f"the depth map {name} has {depth.shape[1]} x {depth.shape[0]} px, but {photo.path.name} has "
                f"{photo.width} x {photo.height}; resize one of them so that pixels correspond"
            )
    depths = [None, *maps, *[None] * (len(photos) - 1 - len(maps))]
    return [CameraImage.of(*image) for image in zip(photos, known, depths)]


def _print_poses(results: list[Any], joint: MultiReferencePose | None, target: Path | None) -> None:
    from dune_cli.tasks import reloc

    best = reloc.best_of(results)
    if best.success or joint is not None or len(results) > 1:
        console.document("\n".join(reloc.in_words(result) for result in results))
    if joint is not None:
        console.document(reloc.joint_in_words(joint))
    if best.success and len(results) > 1:
        console.result(f"best: {best.reference.name}, confidence {best.confidence:.2f}")
    if target is not None:
        console.result(target)
