"""`dune reconstruct`: photos or a video to a 3-D scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.checks import weights
from dune_cli.commands.dense import FILLING, DenseOptions
from dune_cli.commands.masks import PhotoMaskOptions
from dune_cli.commands.matching import (
    NEIGHBOURS,
    EngineOptions,
    MatchingOptions,
    RetrievalOptions,
    check_matchers,
    mapper_option,
    pairs_option,
)
from dune_cli.commands.options import ScenePeopleOptions, SeededOptions, VideoOptions, option
from dune_cli.commands.scene_files import SceneOfPhotos, SceneOutput, Targets
from dune_cli.commands.world import WorldCameras
from dune_cli.errors import JobFailed, UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.geometry.camera_models import Camera
    from dune_cli.geometry.rigs import Rigs
    from dune_cli.io.cache import WorkFolder
    from dune_cli.io.camera_files import CameraEntry
    from dune_cli.io.intrinsics import PhotoCamera
    from dune_cli.io.photos import PhotoInfo
    from dune_cli.sfm.retrieval import DescriptorExtractor
    from dune_cli.sfm.scene import Scene
    from dune_cli.tasks.reconstruct.config import CamerasOf

NEEDS = ("numpy", "torch", "cv2", "PIL", "pycolmap", "scipy", "tqdm")
SPHERE = "EQUIRECTANGULAR"
PEOPLE = "dune-people"  # the networks that find people, which come with dune
WEIGHTS = (
    (
        "two views: 3-D, metric poses and depth",
        "dune reconstruct a.jpg b.jpg -o scene.ply --model NAME",
        ("dunemast3r-vits", "dunemast3r-vitb", "mast3r-vitl"),
    ),
    (
        "any number of views: 3-D, poses and depth",
        "dune reconstruct photos/ -o scene.ply --model NAME",
        ("da3-base", "da3-small"),
    ),
    (
        "matching",
        "dune reconstruct photos/ -o scene.ply --matcher NAME",
        (
            ("dune", "dune-matcher"),
            ("xfeat-lighterglue", "xfeat-lighterglue-bundled"),
            ("aliked-lightglue", "aliked-lightglue-bundled"),
            ("loma-b128", "loma-b128"),
        ),
    ),
)


@options.group("Matching")
class SceneMatching(MatchingOptions):
    model: str | None = options.model_of("two-view models (MASt3R, DUNE + MASt3R) and multi-view ones (DA3)")
    metric_model: str | None = option(
        "--metric-model NAME|FILE",
        "Metric depth model (da3metric-large) that gives the scene of a multi-view --model its scale, and leaves out "
        "the sky.",
        heading="Model",
    )
    method: str = option(
        "--method [auto|matches|pointmap]",
        "Reconstruction method. pointmap: point maps of a two-view or multi-view --model. matches: feature matches and "
        "stereo, without weights. auto: pointmap if --model is given.",
        default="auto",
    )
    min_confidence: float | None = option(
        "--min-confidence X",
        "Minimum confidence of points.",
        options.NOT_NEGATIVE,
        default_text="1.5 for pointmap (1 and above), the 40 % quantile for DA3, 0 for matches (0 to 1)",
    )
    size: int | None = options.size_px(
        "Long side of the network input (pointmap) or of the dense map of two photos (matches)",
        64,
        default_text="the model's own; that of the photo, at most 1600",
    )

    def resolved_method(self) -> str:
        """matches or pointmap. UserError for options that contradict each other."""
        method = self.method
        if self.encoder is not None and self.model is None:
            raise UserError("--encoder goes with a two-view --model; name that model, or leave --encoder out")
        if self.metric_model is not None and self.model is None:
            raise UserError("--metric-model goes with a multi-view --model; name that model, or leave it out")
        if method == "auto":
            method = "pointmap" if self.model is not None and self.matcher == "auto" else "matches"
        if method == "pointmap" and self.model is None:
            raise UserError(
                "--method pointmap needs a two-view --model ('dune weights list' names some); --method matches needs "
                "none"
            )
        if method == "pointmap" and self.matcher != "auto":
            raise UserError(f"--matcher {self.matcher} goes with --method matches; leave one of them out")
        return method


@options.group("Cameras")
class SceneCameras(WorldCameras):
    poses: str | None = option(
        "--poses FILE|DIR", "Known camera poses: a JSON file, a COLMAP model, or a TUM or KITTI trajectory."
    )
    rig: str | None = option(
        "--rig FILE",
        "Rigs: cameras that are fixed to one another, as COLMAP's rig_config.json. Their lengths set the scale. Poses "
        "in the rig that are left out are estimated.",
    )
    pose_use: str = option(
        "--pose-use [fixed|prior]",
        "Use of the known poses. fixed: they stay as they are. prior: their positions are start values.",
        default="fixed",
    )


@options.group("Matching")
class MappingOptions(PhotoMaskOptions, RetrievalOptions, VideoOptions, EngineOptions):
    fps: float | None = options.fps("Frames per second to take from a video, the sharpest of each interval.", "2")
    pairs: str = pairs_option("or a file with two names per line")
    mapper: str = mapper_option()
    preflight: bool = option(
        "--preflight",
        "Time some of the photos, print the estimated pairs, memory and minutes, and stop.",
        heading="Advanced",
    )


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS_AND_VIDEOS,
    matching: SceneMatching,
    cameras: SceneCameras,
    mapping: MappingOptions,
    dense: DenseOptions,
    people: ScenePeopleOptions,
    compute: SeededOptions,
    output: SceneOutput,
) -> None:
    """Reconstruct a 3-D scene from photos of one place, or from a video.

    A scene is its cameras and coloured points or a surface. The first camera is the world frame: x right, y down, z
    forward. Lengths are in metres with a two-view model, --metric-model, --baseline, --marker-size or GPS; with
    --poses, world frame and lengths are those of the poses, and with --crs those of that system. Otherwise the scale is
    unknown, and the median distance between consecutive cameras is 1; with --people the people's heights give metres.
    The exit code is 1 if the photos give no scene. With three photos or more, features and matches are cached in
    --work, from which a second run continues.

    \b
    Examples:
      dune reconstruct left.jpg right.jpg -o scene.ply
      dune reconstruct photos/ -o scene.ply --quality high --colmap model/ --transforms transforms.json
      dune reconstruct walk.mp4 --fps 3 -o scene.glb --mesh tsdf
      dune reconstruct photos/ -o scene.glb --fill
      dune reconstruct left.jpg right.jpg -o scene.glb --fov-deg 65 --baseline 0.2
      dune reconstruct photos/ -o scene.glb --people --preview
      dune reconstruct photos/ -o scene.glb --upright
      dune reconstruct 360/*.jpg -o scene.ply --intrinsics EQUIRECTANGULAR --undistort splat/
      dune reconstruct left/ right/ -o scene.ply --rig rig_config.json
      dune reconstruct left.jpg right.jpg -o scene.ply --model mast3r.pth
      dune reconstruct flight/ -o scene.laz --crs EPSG:32632 --geojson cameras.geojson
      dune reconstruct photos/ -o scene.glb --model da3-base --metric-model da3metric-large
    """
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.outputs import no_empty_folder, unique_stems
    from dune_cli.optional import import_pycolmap

    method = matching.resolved_method()
    paths = expand(photos, videos=True)
    mapping.check(paths)
    checks.there({"--masks": mapping.masks, "--poses": cameras.poses, "--rig": cameras.rig, "--gps": cameras.gps})
    cameras.check_systems()
    mapping.check_classes()
    people.check()
    dense.check_fill(method)
    videos = [path for path in paths if is_video(path)]
    if len(paths) == 1 and not videos:
        raise UserError(f"two photos are needed, got 1 ({paths[0].name}); name two or more of one place, or a video")
    targets = output.targets(dense.mesh is not None, people.people)
    textures = dense.texture_files(targets.scene, paths, output.overwrite)
    targets.check_kept([*paths, *([] if mapping.masks is None else [Path(mapping.masks)])])
    stems = iter(unique_stems(videos))
    targets.check_photos([path.with_name(f"{next(stems)}_0.jpg") if is_video(path) else path for path in paths])

    weights(
        matching.model,
        matching.encoder,
        matching.metric_model,
        PEOPLE if people.people else None,
        FILLING if dense.fill else None,
    )
    if method == "matches":
        check_matchers([matching.matcher])
    if method == "matches" or output.colmap is not None:
        import_pycolmap("dune reconstruct")
    job = Job(method, matching, cameras, mapping, dense, compute, Run(seed=compute.seed))
    with no_empty_folder(job.work(targets)):
        result = job.reconstruct(paths, targets)
    if result is None:  # --preflight
        return
    if not len(result.scene.cloud()[0]):
        raise JobFailed(_no_points(method, matching.min_confidence))
    if people.people:
        result = job.with_people(result, people.height)
    _note_scene(result.scene)
    for text in result.people.notes if result.people is not None else ():
        console.note(text)
    document, written = targets.write(result, job.run)
    output.print_lines(*written, *textures)
    output.print_json([document])


@dataclass(frozen=True)
class Job:
    """One run: the method, the options, and the clock."""

    method: str
    matching: SceneMatching
    cameras: SceneCameras
    mapping: MappingOptions
    dense: DenseOptions
    compute: SeededOptions
    run: Run

    def reconstruct(self, paths: list[Path], targets: Targets) -> SceneOfPhotos | None:
        """The scene of the photos or videos; None after --preflight, which prints its estimate. Two photos of unknown
        poses need no cache."""
        from dune_cli.io.inputs import is_video
        from dune_cli.provenance import sha256_of
        from dune_cli.sfm.pairs import check_pairs

        images, cache, poses, settings = paths, None, None, self._settings()
        entries: Mapping[Path, CameraEntry] = {}
        alone = self.cameras.poses is None and self.cameras.rig is None
        pair = len(paths) == 2 and not any(map(is_video, paths)) and alone
        if pair and not self._spheres(paths, entries):
            self._note_unused()
            images, masked = self.mapping.used(images, self.run)
        else:
            mesh = self._mesh(targets)
            cache, images = self._cached_images(paths, targets)
            images, masked = self.mapping.used(images, self.run)
            if self.mapping.preflight and self.method == "pointmap":
                raise UserError("--preflight measures --method matches; leave --preflight or --model out")
            if self.method == "pointmap":
                self.mapping.refuse(self.method)
            poses, entries = self._known_cameras(images)
            rigs, of_rigs = self._rigs(images)
            entries = {**of_rigs, **entries}
            check_pairs(self.mapping.pairs, images)
            settings |= {
                "pairs": self.mapping.pairs,
                "neighbours": self.mapping.neighbours or NEIGHBOURS,
                "ordered": all(map(is_video, paths)),
                "fixed_poses": self.cameras.pose_use == "fixed",
                "mesh": mesh,
                "rigs": rigs,
            }
        settings |= {"spheres": self._spheres(images, entries)}
        if self.mapping.preflight and (settings["spheres"] or self.cameras.rig is not None):
            raise UserError("--preflight estimates photos that stand alone; leave it out with panoramas and --rig")
        masks = self.mapping.open_masks(masked, self.compute, cache, self.run)
        settings |= {"masks": masks}
        geojson = None if targets.geojson is None else targets.geojson.name
        placement = self.cameras.placement(images, self.cameras.poses, geojson)
        by_method = self._by_pointmaps
        if self.method == "matches":
            by_method = self._by_matches
            if cache is not None:
                settings |= {
                    "positions": placement.priors(images, self.cameras.poses),
                    "check": lambda scene: placement.check(scene, images, self.compute),
                }
        with self.mapping.shared(cache) as shared:
            scene = by_method(images, self._cameras_of(images, entries), settings, shared, poses)
        if scene is None:
            return None
        scene = self.dense.textured(scene, images, self.run)
        if masks is not None:
            scene = replace(scene, sources=(*scene.sources, *masks.sources))
        with self.run.stage("place"):
            scene = placement.apply(scene, images, self.compute)
        metadata = {}
        if cache is not None:
            computed = {kind: count for kind, count in sorted(cache.counts.items()) if not kind.endswith(", found")}
            metadata = {"work": {"folder": cache.folder or cache.place, "computed": computed}}
        return SceneOfPhotos(scene, [(path, sha256_of(path)) for path in images], metadata, masks)

    def with_people(self, result: SceneOfPhotos, height: float | None) -> SceneOfPhotos:
        """The result with the people of its photos. height: standing, metres; None: assumed."""
        from dune_cli.checkpoints.loader import load_human_network
        from dune_cli.tasks.reconstruct.people import add_people

        with self.run.stage("load"):
            network = load_human_network(PEOPLE, self.compute.device)
        paths, heights = [path for path, _ in result.files], None if height is None else (height,)
        scene, people = add_people(result.scene, paths, network, heights, self.run)
        return replace(result, scene=scene, people=people)

    def _mesh(self, targets: Targets) -> str | None:
        """The method of the surface that the scene's format holds, if it holds one."""
        from dune_cli.io import formats
        from dune_cli.optional import check_installed

        content = formats.constant(targets.scene, "CONTENT", ())
        if self.dense.mesh is not None and "surface" not in content:
            raise UserError(
                f"--mesh makes a surface, which {targets.scene.name} does not hold; write -o scene.glb, .obj or .ply"
            )
        mesh = self.dense.mesh or ("tsdf" if content[0] == "surface" else None)
        if mesh is not None and self.dense.dense:
            check_installed("open3d", "a surface of several photos (not their points: -o scene.ply)")
        return mesh

    def work(self, targets: Targets) -> str:
        """The folder of the cache, or its URL."""
        return self.mapping.work or str(targets.scene.with_suffix(".work"))

    def _cached_images(self, paths: list[Path], targets: Targets) -> tuple[WorkFolder, list[Path]]:
        """The cache, and the photos with the frames of videos, which it keeps."""
        from dune_cli.io.cache import WorkFolder
        from dune_cli.sfm.keyframes import extract_keyframes

        cache = WorkFolder(self.work(targets))
        with self.run.stage("read"):
            images = extract_keyframes(paths, self.mapping.fps, cache)
        if len(images) < 2:
            raise UserError(f"two photos are needed, got {len(images)} of {paths[0].name}; raise --fps")
        if images != list(paths):
            targets.check_photos(images)
        return cache, images

    def _cameras_of(self, images: list[Path], entries: Mapping[Path, CameraEntry]) -> CamerasOf:
        """Gives the camera of each photo; `entries`: those that a file of poses has. Given cameras are checked now,
        before anything is loaded."""
        from dune_cli.io.photos import read_infos

        def resolve(photos: Sequence[PhotoInfo]) -> list[PhotoCamera]:
            return self.cameras.resolve_cameras(photos, entries, panoramas=True)

        if self.cameras.fov_deg is None and (self.cameras.intrinsics or SPHERE).strip().upper() == SPHERE:
            return resolve  # what the photos say themselves counts as well
        infos = read_infos(images)
        if infos is None:
            return resolve
        cameras = resolve(infos)
        return lambda _: cameras

    def _spheres(self, images: list[Path], entries: Mapping[Path, CameraEntry]) -> dict[int, Camera]:
        """The panoramas among the photos, by their index."""
        from dune_cli.io.intrinsics import find_panoramas

        spheres = find_panoramas(images, self.cameras.intrinsics, self.cameras.fov_deg, entries)
        if spheres and self.method == "pointmap":
            raise UserError(
                f"{images[next(iter(spheres))].name} is a panorama of the whole sphere, which --model does not take; "
                "leave --model out"
            )
        return spheres

    def _by_matches(
        self,
        images: list[Path],
        cameras: CamerasOf,
        settings: dict[str, Any],
        cache: WorkFolder | None,
        poses: Any,
    ) -> Scene | None:
        from dune_cli.tasks.reconstruct import matches
        from dune_cli.tasks.reconstruct.config import MatchesConfig
        from dune_cli.tasks.reconstruct.preflight import preflight

        dense = self.dense.config(self.compute, self.mapping.mask)
        fill = self.dense.load_fill(self.compute, self.run)
        side_px, mapper = self.matching.size, self.mapping.mapper
        by_descriptors = self.mapping.retrieval_model is not None
        config = MatchesConfig(
            stereo_side_px=side_px, mapper=mapper, dense=dense, fill=fill, by_descriptors=by_descriptors, **settings
        )
        with self.run.stage("load"):
            matcher, fallback = self.matching.load_cascade(self.compute, cache is not None)
        if cache is None:
            return matches.reconstruct(images, cameras, matcher, config, self.run)
        if self.mapping.preflight:
            from dune_cli.io.json_files import dumps

            given = images, cameras, matcher, config, cache, self._descriptors, fallback
            console.document(dumps(asdict(preflight(*given))))
            return None
        scene = matches.reconstruct(
            images, cameras, matcher, config, self.run, cache, self._descriptors, poses, fallback
        )
        console.note(
            f"{cache.counts['features']} photos and {cache.counts['matches']} pairs were computed; the cache is "
            f"{cache.folder or cache.place}"
        )
        return scene

    def _by_pointmaps(
        self,
        images: list[Path],
        cameras: CamerasOf,
        settings: dict[str, Any],
        cache: WorkFolder | None,
        poses: Any,
    ) -> Scene:
        from dune_cli.sfm.multiview import MultiViewModel
        from dune_cli.tasks.reconstruct import multiview, pointmaps
        from dune_cli.tasks.reconstruct.config import MultiviewConfig, PointmapsConfig

        with self.run.stage("load"):
            network = self.matching.load_scene_model(self.compute, self.matching.metric_model)
        settings |= {"size_px": self.matching.size, "fuse": self.dense.dense}
        if isinstance(network, MultiViewModel):
            return multiview.reconstruct(images, cameras, network, MultiviewConfig(**settings), self.run, poses)
        config = PointmapsConfig(**settings)
        return pointmaps.reconstruct(images, cameras, network, config, self.run, cache, poses)

    def _settings(self) -> dict[str, Any]:
        """What every method's configuration has."""
        settings = {"baseline": self.cameras.first_baseline, "seed": self.compute.seed}
        confidence = self.matching.min_confidence
        return settings if confidence is None else settings | {"min_confidence": confidence}

    def _rigs(self, images: list[Path]) -> tuple[Rigs, dict[Path, CameraEntry]]:
        """The rigs of --rig, and the cameras that its file has."""
        from dune_cli.geometry.rigs import NO_RIGS
        from dune_cli.io.rig_files import read_rigs

        if self.cameras.rig is None:
            return NO_RIGS, {}
        if self.method == "pointmap":
            raise UserError("--rig goes with --method matches; leave --rig or --model out")
        if self.cameras.poses is not None:
            raise UserError("--poses and --rig both say where photos are to one another; give one of them")
        given = read_rigs(self.cameras.rig, images)
        frames = len(given.rigs.frames)
        console.note(f"{len(given.rigs.mounts)} photos of rigs, taken at {frames} moments")
        return given.rigs, given.entries

    def _known_cameras(self, images: list[Path]) -> tuple[dict[Path, Any] | None, dict[Path, CameraEntry]]:
        """The known poses, and the cameras that their file has as well, which are used unless others are given."""
        file = self.cameras.poses
        if file is None:
            return None, {}
        from dune_cli.io.pose_files import read_known_cameras

        poses, entries = read_known_cameras(file, [str(image) for image in images])
        missing = [image.name for image in images if str(image) not in poses]
        if len(poses) < 2:
            raise UserError(f"{file} has a pose for only one of the {len(images)} photos; two or more are needed")
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            console.note(f"{file} has no pose for {len(missing)} of {len(images)} photos, which are estimated: {names}")
        given = self.cameras.intrinsics is not None or self.cameras.fov_deg is not None
        if entries:
            models = ", ".join(sorted({entry.model for entry in entries.values()}))
            own = "are not used, for others were given" if given else "are used, and kept as they are"
            console.note(f"{file} has the cameras of {len(entries)} photos as well ({models}), which {own}")
        known = {} if given else {Path(name): entry for name, entry in entries.items()}
        return {Path(name): pose for name, pose in poses.items()}, known

    def _descriptors(self) -> DescriptorExtractor | None:
        """The encoder of image retrieval; None where the user named none and the default one is not here."""
        from dune_cli.checkpoints import registry, weights_folder
        from dune_cli.sfm.retrieval import DEFAULT_MODEL, load_descriptor_extractor

        name = self.mapping.retrieval_model
        if name is None:
            entry = registry.find(DEFAULT_MODEL)
            if entry is None or weights_folder.find_present(entry) is None:
                console.note(f"the encoder {DEFAULT_MODEL} is not on this machine: pairs are retrieved by keypoints")
                return None
        return load_descriptor_extractor(name or DEFAULT_MODEL, self.compute.device)

    def _note_unused(self) -> None:
        """A note about options that two photos do not use."""
        unused = [
            "--no-dense" if one.name == "dense" else one.metadata["names"][0]
            for group in (self.mapping, self.cameras, self.dense)
            for one in fields(group)
            if one.name not in ("fps", "mesh", "texture", "fill", "masks", "mask", *WorldCameras.__dataclass_fields__)
            and getattr(group, one.name) != one.default
        ]
        if unused:
            console.note(f"two photos do not use {', '.join(unused)}")


def _no_points(method: str, min_confidence: float | None) -> str:
    """Why a scene without points is none."""
    if min_confidence:
        return f"no point reaches the --min-confidence {min_confidence:g}; lower it"
    if method == "pointmap":
        return "no point of the model's maps is confident enough; take photos that overlap more"
    return (
        "no point can be triangulated: the camera only turned, or hardly moved; move it between photos, a step to the "
        "side of about a tenth of the distance"
    )


def _note_scene(scene: Scene) -> None:
    for text in scene.notes:
        console.note(text)
    kind = f"dense, {scene.coverage:.0%} of the map" if scene.is_dense else "matched points only"
    if scene.filled_share is not None:
        kind += f", {scene.filled_share:.0%} filled by the depth network"
    rest = (
        f"reprojection error {scene.reprojection_error_px:.2f} px, parallax {scene.parallax_deg:.2f} deg, "
        f"{len(scene.cloud()[0])} points ({kind}), scale {scene.scale}"
    )
    if len(scene.views) == 2:
        console.note(f"{scene.pairs[0].matches} matches, {scene.pairs[0].inliers} inliers, {rest}")
        return
    for view in scene.views:
        if not view.registered:
            console.note(f"{view.image} could not be registered: {view.reason}")
    for component in scene.components[1:]:
        names = ", ".join(scene.views[index].image for index in component)
        console.note(f"another connected component, which was left out: {names}")
    console.note(f"{len(scene.registered)} of {len(scene.views)} photos registered, {rest}")
