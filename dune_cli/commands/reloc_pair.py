"""`dune reloc` without a map: a query photo and its references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import checks
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from dune_cli.tasks.reloc.many_refs import JointPose
    from dune_cli.tasks.reloc.sight import Shot


@dataclass(frozen=True)
class PairWords:
    """What was said on the command line."""

    query: str
    references: tuple[str, ...]
    model: str | None
    encoder: str | None
    matcher: str
    solver: str | None
    ref_depths: tuple[str, ...]
    depth_scale: float | None
    baseline: float | None
    min_confidence: float | None
    intrinsics: str | None
    fov_deg: float | None
    size: int | None
    seed: int
    device: str
    dtype: str
    output: str | None
    overwrite: bool
    as_json: bool


def locate_by_references(words: PairWords) -> None:
    """Prints and writes the poses; JobFailed where there is none."""
    from dune_cli.io import atomic
    from dune_cli.io.inputs import expand
    from dune_cli.io.jsons import dumps, write_json
    from dune_cli.provenance import Run

    paths = expand([words.query]), expand(words.references)
    if len(paths[0]) != 1:
        raise UserError(f"one query photo is needed, {words.query} names {len(paths[0])}; name a single file")
    metric_points = words.model is not None or bool(words.ref_depths)
    _check_lengths(words, len(paths[1]))
    target = atomic.check_output(words.output, (".json",), words.overwrite) if words.output is not None else None

    checks.weights(words.model, words.encoder)
    checks.matchers([words.matcher] if words.model is None else [])

    from dune_cli.commands.reloc import load_sight
    from dune_cli.tasks.reloc import files, many_refs, solve

    run = Run(seed=words.seed)
    with run.stage("read"):
        shots = _shots([*paths[0], *paths[1]], words.intrinsics, words.fov_deg, words.ref_depths, words.depth_scale)
    with run.stage("load"):
        sight = load_sight(words.model, words.encoder, words.matcher, words.size, words.device, words.dtype)
    config = solve.SolverConfig(
        words.solver or ("pnp" if metric_points else "essential"),
        words.baseline,
        solve.MIN_CONFIDENCE if words.min_confidence is None else words.min_confidence,
        words.seed,
    )
    results, commons, references = [], [], []
    with run.stage("look"):
        seen_query = sight.look(shots[0])
    for shot in console.progress(shots[1:], "reloc", unit="reference"):
        with run.stage("look"):
            references.append(sight.look(shot))
        with run.stage("match"):
            try:
                commons.append(sight.compare(references[-1], seen_query))
            except JobFailed as error:
                commons.append(None)
                results.append(solve.failed(shot, shots[0], config, str(error), metric_points))
                continue
        with run.stage("pose"):
            results.append(solve.relocalize(commons[-1], config))
    joint = None
    if len(references) > 1:
        with run.stage("joint"):
            joint = many_refs.together(sight, references, seen_query, commons, results, config)
    best = files.best_of(results) if joint is None else joint.pose
    if "default" in (best.query.focal_source, best.reference.focal_source):
        console.note(
            "the focal length is a guess (55 degrees across the long side), and so is the pose; give --intrinsics or "
            "--fov-deg"
        )
    provenance = run.provenance(
        [sight.source],
        [(shot.photo.path, shot.photo.sha256) for shot in shots] + _hashed(words.ref_depths),
        units="metre" if best.scale == "metric" else "baseline",
        axes="OpenCV: x right, y down, z forward",
    )
    tree = files.document(results, provenance, joint)
    if target is not None:
        write_json(target, tree)
    if words.as_json:
        console.document(dumps(tree))
    else:
        _print(results, joint, target)
    if not best.success:
        raise JobFailed(best.message if len(results) == 1 else f"none of {len(results)} references: {best.message}")


def _check_lengths(words: PairWords, references: int) -> None:
    """Options that contradict each other: UserError."""
    checks.model_options(words.model, words.matcher, words.encoder, words.size)
    ways = {"--model": words.model, "--ref-depth": words.ref_depths or None, "--baseline": words.baseline}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say how long the translation is; give one of them")
    if words.ref_depths and len(words.ref_depths) != references:
        raise UserError(
            f"{len(words.ref_depths)} depth maps for {references} references; give --ref-depth once for each"
        )
    if words.depth_scale is not None and not words.ref_depths:
        raise UserError("--depth-scale belongs to --ref-depth; give both or none")
    if words.baseline is not None and references > 1:
        raise UserError(f"--baseline is the distance to one reference, {references} were named; name one")
    if words.solver == "pnp" and words.model is None and not words.ref_depths:
        raise UserError("--solver pnp needs points in metres: give --ref-depth of the reference, or a two-view --model")


def _shots(
    paths: list[Any], intrinsics: str | None, fov_deg: float | None, ref_depths: tuple[str, ...], scale: float | None
) -> list[Shot]:
    """The query and the references with their cameras and depth maps."""
    from dune_cli.io.depth_input import read_depth
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks.reloc.sight import Shot

    photos = [read_photo(path) for path in paths]
    cameras = resolve_intrinsics(photos, intrinsics, fov_deg)
    depths = [None, *(read_depth(path, scale) for path in ref_depths)] + [None] * (len(photos) - 1 - len(ref_depths))
    for photo, depth, name in zip(photos[1:], depths[1:], ref_depths):
        if depth is not None and depth.shape != (photo.height, photo.width):
            raise UserError(
                f"the depth map {name} has {depth.shape[1]} x {depth.shape[0]} px, but {photo.path.name} has "
                f"{photo.width} x {photo.height}; resize one of them so that pixels correspond"
            )
    return [Shot(photo, K, source, depth) for photo, (K, source), depth in zip(photos, cameras, depths)]


def _hashed(names: tuple[str, ...]) -> list[tuple[Any, str]]:
    from pathlib import Path

    from dune_cli.provenance import sha256_of

    return [(path, sha256_of(path)) for path in (Path(name).expanduser() for name in names)]


def _print(results: list[Any], joint: JointPose | None, target: Path | None) -> None:
    from dune_cli.tasks.reloc import files

    best = files.best_of(results)
    if best.success or joint is not None or len(results) > 1:
        console.document("\n".join(files.in_words(result) for result in results))
    if joint is not None:
        console.document(files.joint_in_words(joint))
    if best.success and len(results) > 1:
        console.result(f"best: {best.reference.name}, confidence {best.confidence:.2f}")
    if target is not None:
        console.result(target)
