"""`dune reconstruct` of three photos or more: the work folder, the encoder, the preflight, and what to run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.commands.reconstruct_options import Many
    from dune_cli.commands.reconstruct_outputs import Targets
    from dune_cli.io.work_folder import WorkFolder
    from dune_cli.provenance import Run
    from dune_cli.tasks.reconstruct.gallery import Describer
    from dune_cli.tasks.reconstruct.scene import Scene

    Done = tuple[Scene, list[tuple[Path, str]], dict[str, Any]]

SURFACE_SUFFIXES = (".obj", ".glb", ".ply")


@dataclass(frozen=True)
class Compute:
    """Which method, with what, on what."""

    method: str
    model: str | None
    encoder: str | None
    matcher: str
    device: str
    dtype: str
    size_px: int | None


@dataclass(frozen=True)
class Job:
    """What both methods get. ordered: the photos follow one another. cameras: --intrinsics, --fov-deg. shared: the
    settings that both configurations have."""

    images: list[Path]
    many: Many
    compute: Compute
    cameras: tuple[str | None, float | None]
    shared: dict[str, Any]
    work: WorkFolder
    run: Run
    ordered: bool
    surface: str | None

    def settings(self) -> dict[str, Any]:
        """Of either configuration."""
        pairs = {"pairs": self.many.pairs, "neighbours": self.many.neighbours, "ordered": self.ordered}
        return pairs | {"fixed_poses": self.many.pose_use == "fixed"} | self.shared

    def intrinsics(self, facts: Any) -> Any:
        """K and where it is from, of each photo."""
        from dune_cli.io.intrinsics import resolve_intrinsics

        return resolve_intrinsics(facts, *self.cameras)


def run_many(
    paths: Sequence[Path],
    targets: Targets,
    many: Many,
    compute: Compute,
    cameras: tuple[str | None, float | None],
    shared: dict[str, Any],
    run: Run,
) -> Done | None:
    """The scene, each photo with its hash, and what was new to the work folder; None after --preflight, which prints
    what the work would take."""
    from dune_cli.io.inputs import is_video
    from dune_cli.io.work_folder import WorkFolder
    from dune_cli.tasks.reconstruct.video_frames import photos_of

    suffix = targets.scene.suffix.lower()
    if many.mesh is not None and suffix not in SURFACE_SUFFIXES:
        raise UserError(
            f"--mesh makes a surface, which {targets.scene.name} does not hold; write -o scene.glb, .obj or .ply"
        )
    work = WorkFolder(many.work or targets.scene.with_suffix(".work"))
    ordered = all(map(is_video, paths))
    with run.stage("read"):
        images = photos_of(paths, many.fps, work)
    if len(images) < 2:
        raise UserError(f"two photos are needed, got {len(images)} of {paths[0].name}; raise --fps")
    if images != list(paths):
        targets.check_photos(images)
    surface = many.mesh or ("tsdf" if suffix in (".obj", ".glb") else None)
    job = Job(images, many, compute, cameras, shared, work, run, ordered, surface)
    return _by_pointmaps(job) if compute.method == "pointmap" else _by_matches(job)


def _by_matches(job: Job) -> Done | None:
    from dune_cli.commands.reconstruct import pick_matcher
    from dune_cli.io.jsons import dumps
    from dune_cli.tasks.reconstruct import many as task
    from dune_cli.tasks.reconstruct.pairing import check_pairs
    from dune_cli.tasks.reconstruct.preflight import preflight

    images, many, compute, work, run = job.images, job.many, job.compute, job.work, job.run
    poses = _known_poses(many, images, job.shared)
    config = task.ManyConfig(mapper=many.mapper, **job.settings())
    check_pairs(many.pairs, images)
    matcher = pick_matcher(compute.matcher, compute.model, compute.encoder, compute.device, compute.dtype, run)
    describer = _describer(many.retrieval_model, compute) if task.wants_descriptors(len(images), config) else None
    if many.preflight:
        console.document(dumps(asdict(preflight(images, matcher, config, work, describer))))
        return None

    scene = task.reconstruct(images, job.intrinsics, matcher, config, work, run, describer, poses)
    if many.dense and not scene.is_dense:
        from dune_cli.tasks.reconstruct.dense.config import DenseConfig
        from dune_cli.tasks.reconstruct.densify import densify

        settings = DenseConfig(many.quality, device=compute.device)
        scene = densify(scene, images, settings, job.surface, run, config.min_confidence)
    console.note(
        f"{work.counts['features']} photos and {work.counts['matches']} pairs were new; {work.folder} keeps them"
    )
    return scene, _hashed(images), _work_facts(work)


def _known_poses(many: Many, images: list[Path], shared: dict[str, Any]) -> dict[Path, Any] | None:
    if many.poses is None:
        return None
    if shared["baseline"] is not None:
        raise UserError("--poses and --baseline both say how long things are; give one of them")
    from dune_cli.io.known_poses import read_poses

    found = read_poses(many.poses, [str(image) for image in images])
    missing = [image.name for image in images if str(image) not in found]
    if len(found) < 2:
        raise UserError(f"{many.poses} has a pose for only one of the {len(images)} photos; two or more are needed")
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        console.note(f"{many.poses} has no pose for {len(missing)} of {len(images)} photos, which are placed: {names}")
    return {Path(name): pose for name, pose in found.items()}


def _describer(name: str | None, compute: Compute) -> Describer | None:
    """The encoder that compares photos; None where the user named none and the default one is not here."""
    from dune_cli.checkpoints import registry, store
    from dune_cli.checkpoints.load import load_encoder
    from dune_cli.matchers.retrieval import DEFAULT_MODEL
    from dune_cli.tasks.reconstruct.gallery import encoder_describer

    if name is None:
        entry = registry.find(DEFAULT_MODEL)
        if entry is None or store.find_present(entry) is None:
            console.note(
                f"the encoder {DEFAULT_MODEL} is not here: photos that look alike are found by their keypoints"
            )
            return None
    return encoder_describer(load_encoder(name or DEFAULT_MODEL, compute.device))


def _work_facts(work: WorkFolder) -> dict[str, Any]:
    """How many things of each kind this run computed; the others came out of the folder."""
    computed = {kind: count for kind, count in sorted(work.counts.items()) if not kind.endswith(", found")}
    return {"work": {"folder": work.folder, "computed": computed}}


def _hashed(images: list[Path]) -> list[tuple[Path, str]]:
    from dune_cli.provenance import sha256_of

    return [(path, sha256_of(path)) for path in images]


def _by_pointmaps(job: Job) -> Done:
    from dune_cli.checkpoints import load
    from dune_cli.tasks.reconstruct import many_pointmaps as task
    from dune_cli.tasks.reconstruct.densify import fused
    from dune_cli.tasks.reconstruct.pairing import check_pairs

    images, many, compute = job.images, job.many, job.compute
    if many.preflight:
        raise UserError("--preflight measures --method matches; leave --preflight or --model out")
    assert compute.model is not None
    poses = _known_poses(many, images, job.shared)
    config = task.ManyPointMapsConfig(size_px=compute.size_px, **job.settings())
    check_pairs(many.pairs, images)
    with job.run.stage("load"):
        network = load.load_two_view(compute.model, compute.encoder, compute.device, compute.dtype)
    console.note(f"model {network.source.name}, licence {network.source.licence}")
    scene = task.reconstruct(images, job.intrinsics, network, config, job.work, job.run, poses)
    if many.dense:
        scene = fused(scene, job.surface, job.run)
    return scene, _hashed(images), _work_facts(job.work)
