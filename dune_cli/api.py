"""dune from Python: photos in, typed results out.

    from dune_cli import depth, people, reconstruct, relocalize

    depth("photo.jpg").save("depth.png")
    reconstruct(["left.jpg", "right.jpg"], baseline=0.2).save("scene.glb")
    relocalize("query.jpg", "reference.jpg").ref_from_query      # (4, 4)

Each function does what the command of its name does with the same models (`reloc` is `relocalize`, `human` is
`people`). A photo is a path, an array (H, W, 3) uint8 RGB, or an `io.photos.Photo`. `model` is a registry name or a
file; None takes the best one on this machine, and there always is one. Intrinsics are a matrix (3, 3) in pixels with
centres at integers, or a text as of --intrinsics. Models stay in memory between calls. `save` writes the file and the
JSON that the command writes, and returns its content. Errors are `DuneError`s. `progress` is called with a
`progress.Progress` (step, done, total, unit) whenever a step begins or has done more, instead of printing it; what it
raises ends the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from dune_cli.checkpoints import loader
from dune_cli.checkpoints.default_models import MODELS
from dune_cli.checkpoints.weights_folder import default_model
from dune_cli.errors import UserError
from dune_cli.io import formats, outputs
from dune_cli.io.cache import WorkFolder
from dune_cli.io.inputs import expand
from dune_cli.io.intrinsics import PhotoCamera, find_panoramas, resolve_cameras
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import Photo, read_photo
from dune_cli.matchers.filtering import ExtractedImage, extract_image, find_matches
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.matchers.registry import load_cascade, load_matcher
from dune_cli.models.heads import HeadedEncoder
from dune_cli.models.people_poses import PeopleNetwork
from dune_cli.mvs.quality import DenseConfig
from dune_cli.mvs.sky import SkyNetwork
from dune_cli.mvs.texturing import texture_scene
from dune_cli.progress import Listener, listening
from dune_cli.provenance import Run, Source, sha256_of
from dune_cli.sfm import placement, relative_pose
from dune_cli.sfm.georeference import PositionPriors, georeference
from dune_cli.sfm.masks import MaskFiles, PhotoMasks, open_masks
from dune_cli.sfm.relative_pose import CameraImage, MatcherBackend, Relocalization, SolverConfig, TwoViewMatches
from dune_cli.sfm.retrieval import DEFAULT_MODEL, DescriptorExtractor, encoder_descriptor_extractor
from dune_cli.sfm.scene import Scene
from dune_cli.tasks import classify as classify_task
from dune_cli.tasks import depth as depth_task
from dune_cli.tasks import encode as encode_task
from dune_cli.tasks import human as human_task
from dune_cli.tasks import segment as segment_task
from dune_cli.tasks.classify import ClassScore
from dune_cli.tasks.depth import Depth
from dune_cli.tasks.encode import EncoderFeatures
from dune_cli.tasks.human import FittedHumanModel, HumanModel, PhotoPeople
from dune_cli.tasks.reconstruct import export, matches, people_files
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.people import PeopleInScene, add_people
from dune_cli.tasks.segment import ClassMap

PhotoLike = str | Path | np.ndarray | Photo
Intrinsics = np.ndarray | str | Path
AXES = "OpenCV: x right, y down, z forward"
KEPT_MODELS = 8
SEGMENTER = "dune-segment"
FILLING = "dune-depth"  # the head that fills depth maps, which comes with dune as well
PEOPLE_MODEL = "dune-people"
ResultType = TypeVar("ResultType")
Function = TypeVar("Function", bound=Callable[..., Any])


def _told(function: Function) -> Function:
    """The function, whose progress goes to its argument `progress`."""

    @wraps(function)
    def told(*arguments: Any, **named: Any) -> Any:
        with listening(named.get("progress")):
            return function(*arguments, **named)

    return cast(Function, told)


# --- results ---


@dataclass(frozen=True)
class DepthResult(Depth):
    """A `Depth` with the `sources` of its weights."""

    sources: tuple[Source, ...] = ()

    def save(self, path: str | Path, overwrite: bool = False) -> dict[str, Any]:
        """Writes .png, .npz, .exr or .ply, and the JSON `dune.depth/1` beside it."""
        target = _target(path, formats.names("write_depth"), overwrite)
        document = depth_task.document(self, target, depth_task.write(self, target), _made(self.sources, [self.photo]))
        return _with_json(target, document)


@dataclass(frozen=True)
class SegmentResult(ClassMap):
    """A `ClassMap` with the `sources` of its weights."""

    sources: tuple[Source, ...] = ()

    def save(self, path: str | Path, overwrite: bool = False) -> dict[str, Any]:
        """Writes a .png of class numbers, and the JSON `dune.classmap/1` beside it."""
        target = _target(path, ["png"], overwrite)
        segment_task.write(self, target)
        return _with_json(target, segment_task.document(self, target, None, _made(self.sources, [self.photo])))


@dataclass(frozen=True)
class EncodeResult(EncoderFeatures):
    """`EncoderFeatures` with the `sources` of its weights."""

    sources: tuple[Source, ...] = ()

    def save(self, path: str | Path, overwrite: bool = False) -> dict[str, Any]:
        """Writes .npz, or a .png of the principal components, and the JSON `dune.features/1` beside it."""
        target = _target(path, ["npz", "png"], overwrite)
        encode_task.write(self, target)
        provenance = Run().provenance(list(self.sources), [(self.path, self.sha256)])
        return _with_json(target, encode_task.document(self, target, provenance))


@dataclass(frozen=True)
class PeopleResult(PhotoPeople):
    """`PhotoPeople` with the model that poses their bodies; in metres, OpenCV axes."""

    model: HumanModel | FittedHumanModel | None = None

    @property
    def meshes(self) -> list[Mesh]:
        """The bodies, each with the colour of its person."""
        assert self.model is not None
        return human_task.meshes(self.model, self.people, self.ids)

    def save(self, path: str | Path, overwrite: bool = False) -> dict[str, Any]:
        """Writes the bodies as .obj, .glb or .ply, and the JSON `dune.human/1` beside them."""
        target = _target(path, formats.names("write_scene", content="surface"), overwrite)
        assert self.model is not None
        human_task.write_meshes(target, self.meshes, self)
        made = _made((self.model.source, self.model.body.source), [self.photo])
        return _with_json(target, human_task.document(self.model, self, target, made))

    def save_overlay(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the photo with the bodies over it, as .png."""
        target = outputs.check_output(path, (".png",), overwrite)
        human_task.write_overlay(target, self.meshes, self)


@dataclass(frozen=True)
class SceneResult(Scene):
    """A `Scene` with its photos, and the people of `reconstruct(people=...)`."""

    paths: tuple[Path, ...] = ()
    people: PeopleInScene | None = None

    def save(self, path: str | Path, overwrite: bool = False, colmap: str | Path | None = None) -> dict[str, Any]:
        """Writes .ply, .glb, .obj or .npz, and the JSON `dune.scene/1` beside it. colmap: folder for a COLMAP model.
        People are in the file, or in an .obj beside one that names no meshes."""
        target = _target(path, formats.names("write_scene"), overwrite)
        folder = None if colmap is None else outputs.check_output_folder(colmap, overwrite)
        file = people_files.people_file(target)
        bodies = [] if self.people is None else people_files.people_meshes(self.people, file)
        if bodies and file != target:
            people_files.write_people(bodies, self, outputs.check_output(file, (file.suffix,), overwrite))
        points, mesh = export.write_scene(self, target, False, bodies if file == target else [])
        if folder is not None:
            export.write_colmap_model(self, folder, True)
        made = Run().provenance(list(self.sources), [(photo, sha256_of(photo)) for photo in self.paths], axes=AXES)
        people = None if self.people is None else people_files.people_json(self.people, self, file if bodies else None)
        return _with_json(target, export.scene_json(self, points, mesh, made, people))


# --- single photos ---


@_told
def depth(
    photo: PhotoLike,
    model: str | Path | None = None,
    *,
    intrinsics: Intrinsics | None = None,
    fov_deg: float | None = None,
    size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Listener | None = None,
) -> DepthResult:
    """Depth z at each pixel of a photo: `depth` (H, W) float32, in metres where `scale` is "metric". size: long side of
    the network's input in pixels."""
    one = as_photo(photo)
    network = _network("depth", _chosen(model, "depth"), device, dtype)
    camera = _cameras([one], intrinsics, fov_deg)[0]
    found = depth_task.predict(network, one, (camera.K, camera.source), size, lens=camera.camera)
    return _as(DepthResult, found, sources=tuple(network.sources))


@_told
def segment(
    photo: PhotoLike,
    model: str | Path | None = None,
    *,
    size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Listener | None = None,
) -> SegmentResult:
    """A class for each pixel of a photo: `classes` (H, W), whose `names` may be known. size: as of --size."""
    network = _network("segmenter", _chosen(model, "segment"), device, dtype)
    found = segment_task.predict(network, as_photo(photo), size_px=size)
    return _as(SegmentResult, found, sources=tuple(network.sources))


@_told
def classify(
    photo: PhotoLike,
    model: str | Path | None = None,
    *,
    top: int = 5,
    device: str = "auto",
    dtype: str = "auto",
    progress: Listener | None = None,
) -> list[ClassScore]:
    """The `top` most probable classes of a photo, best first."""
    network = _network("classifier", _chosen(model, "classify"), device, dtype)
    return classify_task.predict(network, as_photo(photo), top)


@_told
def encode(
    photo: PhotoLike,
    model: str | Path = DEFAULT_MODEL,
    *,
    size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Listener | None = None,
) -> EncodeResult:
    """An encoder's features of a photo: `cls` (D), `registers` (R, D), `patches` (h, w, D). size: long side of the
    network's input in pixels; None: the encoder's own."""
    network = _network("encoder", str(model), device, dtype)
    (found,) = encode_task.encode(network, [as_photo(photo)], size)
    return _as(EncodeResult, found, sources=(network.source,))


@_told
def people(
    photo: PhotoLike,
    model: str | Path | None = None,
    *,
    intrinsics: Intrinsics | None = None,
    fov_deg: float | None = None,
    heights: Sequence[float] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Listener | None = None,
) -> PeopleResult:
    """The bodies of the people in a photo. heights: standing, in metres, one for all or one a person, for the model
    that comes with dune; None: assumed."""
    one = as_photo(photo)
    network = _human(_chosen(model, "human"), device, dtype)
    text = _intrinsics_text(intrinsics)
    camera = human_task.cameras([one], text, fov_deg)[0]
    return _as(PeopleResult, human_task.predict(network, one, camera, heights=heights), model=network)


# --- two photos and more ---


@_told
def match(
    photo1: PhotoLike,
    photo2: PhotoLike,
    matcher: str = "auto",
    *,
    device: str = "auto",
    progress: Listener | None = None,
) -> Matches:
    """Pixel correspondences of two photos: `points1`, `points2` (M, 2) and `scores` (M,), not yet verified by
    geometry."""
    chosen = _matcher(matcher, device)
    return find_matches(chosen, _extracted(chosen, as_photo(photo1)), _extracted(chosen, as_photo(photo2)))


@_told
def relocalize(
    query: PhotoLike,
    reference: PhotoLike,
    matcher: str = "auto",
    *,
    intrinsics: Intrinsics | None = None,
    fov_deg: float | None = None,
    ref_depth: np.ndarray | None = None,
    baseline: float | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Listener | None = None,
) -> Relocalization:
    """The pose of the query's camera in the frame of the reference's: `ref_from_query` (4, 4), or None with a
    `message` where there is none.

    Its length is metric with `ref_depth` (H, W), z in metres at the reference's pixels, or `baseline`, the distance of
    the cameras in metres; UserError for both.
    """
    given = {"intrinsics": intrinsics, "fov_deg": fov_deg, "ref_depth": ref_depth, "baseline": baseline}
    return match_and_relocalize(query, reference, matcher, **given, seed=seed, device=device)[1]


def match_and_relocalize(
    query: PhotoLike,
    reference: PhotoLike,
    matcher: str = "auto",
    *,
    intrinsics: Intrinsics | None = None,
    fov_deg: float | None = None,
    ref_depth: np.ndarray | None = None,
    baseline: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> tuple[TwoViewMatches, Relocalization, Source]:
    """The matches of `relocalize`, its pose, and the matcher's source."""
    if ref_depth is not None and baseline is not None:
        raise UserError("ref_depth and baseline each set the length of the translation; give one of them")
    photos = [as_photo(query), as_photo(reference)]
    if ref_depth is not None and np.shape(ref_depth) != (photos[1].height, photos[1].width):
        raise UserError(
            f"ref_depth has the shape {np.shape(ref_depth)}, the reference {(photos[1].height, photos[1].width)}"
        )
    cameras = _cameras(photos, intrinsics, fov_deg)
    depths = (None, None if ref_depth is None else np.asarray(ref_depth, np.float32))
    images = [CameraImage.of(*image) for image in zip(photos, cameras, depths)]
    backend = MatcherBackend(_matcher(matcher, device))
    solver = "essential" if ref_depth is None else "pnp"
    config = SolverConfig(solver, baseline, relative_pose.MIN_CONFIDENCE, seed)
    found = backend.match(*backend.extract_all(images[::-1]))
    return found, relative_pose.relocalize(found, config), backend.source


@_told
def reconstruct(
    photos: str | Path | Sequence[str | Path],
    matcher: str = "auto",
    *,
    intrinsics: Intrinsics | None = None,
    fov_deg: float | None = None,
    baseline: float | None = None,
    dense: bool = True,
    quality: str = "medium",
    fill: bool = False,
    mesh: str | None = None,
    texture: bool = False,
    masks: str | Path | Sequence[str] | None = None,
    people: bool | float = False,
    crs: str | None = None,
    gps: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Listener | None = None,
) -> SceneResult:
    """The scene of photos of one place by feature matches: cameras, points and, unless `dense` is False, depth maps.

    photos: paths, folders or globs of two or more photos. baseline: the distance of the first two cameras in metres.
    quality: low, medium or high, of the depth maps; fill: their holes by the bundled depth network. mesh: tsdf or
    poisson, the surface that is made of all views of three photos or more; texture: of the surface, from the photos.
    masks: a folder of mask images, or classes of the bundled segmentation such as ["sky", "person"], of which nothing
    is used. people: find the people and place their bodies (`SceneResult.people`); a number is their standing height in
    metres. crs: "EPSG:N" or "enu", the world of the scene, by the photos' EXIF or the table `gps`, as of --crs and
    --gps. Raises JobFailed where the photos give no scene.
    """
    named = [photos] if isinstance(photos, (str, Path)) else list(photos)
    paths = expand([str(path) for path in named])
    if len(paths) < 2:
        raise UserError(f"two photos are needed, got {len(paths)}")
    if texture and not dense:
        raise UserError("texture needs a surface, which dense=False leaves out; leave one of them out")
    if fill and not dense:
        raise UserError("fill needs depth maps, which dense=False leaves out; leave one of them out")

    def load_sky() -> SkyNetwork:
        return segment_task.sky_network(_scene_classes(device))

    run = Run(seed=seed)
    text = _intrinsics_text(intrinsics)
    positions = frame = None
    if crs is not None or gps is not None:
        system = placement.named_crs(crs)
        positions = placement.find_positions(paths, gps, None, system)
        frame = placement.frame_of(crs, positions, system)
    wants_sky = isinstance(masks, (str, Path)) or "sky" not in (masks or ())
    dense_config = DenseConfig(quality, device=device, load_sky=load_sky if wants_sky else None) if dense else None
    files = MaskFiles(masks, paths) if isinstance(masks, (str, Path)) else None
    paths = paths if files is None else files.used
    opened = _masks(masks, files, device, run)
    network = depth_task.filling_network(_network("depth", FILLING, device, "float32")) if fill else None
    spheres = find_panoramas(paths, text, fov_deg)
    priors = None if positions is None else PositionPriors(positions)
    config = MatchesConfig(
        baseline=baseline,
        seed=seed,
        dense=dense_config,
        fill=network,
        mesh=mesh,
        masks=opened,
        spheres=spheres,
        positions=priors,
    )

    def descriptors() -> DescriptorExtractor:
        return encoder_descriptor_extractor(_network("encoder", DEFAULT_MODEL, device, "float32"))

    def cameras_of(infos: Sequence[Any]) -> list[PhotoCamera]:
        return resolve_cameras(infos, text, fov_deg, panoramas=True)

    fallback = None
    if matcher == "auto" and not config.is_stereo_pair(paths, None):
        chosen, fallback = _cascade(device)
    else:
        chosen = _matcher(matcher, device)
    with ExitStack() as until_textured:  # the views of panoramas are files, which the texture reads again
        cache = WorkFolder(until_textured.enter_context(scratch_folder())) if spheres else None
        scene = matches.reconstruct(
            paths, cameras_of, chosen, config, run, cache, descriptors=descriptors, fallback=fallback
        )
        if texture:
            scene = texture_scene(scene, paths, run)
    if opened is not None:
        scene = replace(scene, sources=(*scene.sources, *opened.sources))
    if frame is not None and positions is not None:
        scene = georeference(scene, positions, frame, None, seed)
    bodies = None
    if people:
        heights = None if people is True else (float(people),)
        scene, bodies = add_people(scene, paths, _people_network(device), heights, run)
    return _as(SceneResult, scene, paths=tuple(paths), people=bodies)


def _masks(
    given: str | Path | Sequence[str] | None, files: MaskFiles | None, device: str, run: Run
) -> PhotoMasks | None:
    """Of files, or of classes of the bundled segmentation."""
    classes = () if given is None or isinstance(given, (str, Path)) else tuple(given)

    return open_masks(files, classes, lambda: _scene_classes(device), None, run)


@lru_cache(maxsize=1)
def _scene_classes(device: str) -> HeadedEncoder:
    return loader.load_head(SEGMENTER, "segmentation", None, device, "auto")


@lru_cache(maxsize=1)
def _people_network(device: str) -> PeopleNetwork:
    network = loader.load_human_network(PEOPLE_MODEL, device)
    assert isinstance(network, PeopleNetwork)
    return network


# --- photos, cameras, models ---


def as_photo(photo: PhotoLike) -> Photo:
    """A photo from a path, which is read, or an array (H, W, 3) uint8 RGB. UserError for other arrays."""
    if isinstance(photo, Photo):
        return photo
    if not isinstance(photo, np.ndarray):
        return read_photo(photo)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise UserError(f"a photo as an array is (H, W, 3) uint8 RGB, not {photo.shape} {photo.dtype}")
    rgb = np.ascontiguousarray(photo)
    return Photo(Path("array"), rgb, hashlib.sha256(rgb.tobytes()).hexdigest())


def _cameras(photos: Sequence[Photo], intrinsics: Intrinsics | None, fov_deg: float | None) -> list[PhotoCamera]:
    return resolve_cameras(photos, _intrinsics_text(intrinsics), fov_deg)


def _intrinsics_text(intrinsics: Intrinsics | None) -> str | None:
    """Intrinsics as --intrinsics takes them."""
    if not isinstance(intrinsics, np.ndarray):
        return None if intrinsics is None else str(intrinsics)
    if intrinsics.shape != (3, 3):
        raise UserError(f"intrinsics as an array are a matrix (3, 3), not {intrinsics.shape}")
    K = intrinsics.astype(np.float64)
    return ",".join(repr(float(K[row, column])) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))


def _chosen(model: str | Path | None, verb: str) -> str:
    return default_model(MODELS[verb]) if model is None else str(model)


@lru_cache(maxsize=KEPT_MODELS)
def _network(kind: str, name: str, device: str, dtype: str) -> Any:
    loaders: dict[str, Callable[..., Any]] = {
        "encoder": loader.load_encoder,
        "depth": loader.load_depth,
        "segmenter": loader.load_segmenter,
        "classifier": loader.load_classifier,
    }
    return loaders[kind](name, device=device, dtype=dtype)


@lru_cache(maxsize=KEPT_MODELS)
def _human(name: str, device: str, dtype: str) -> HumanModel | FittedHumanModel:
    return human_task.load_human(name, device=device, dtype=dtype)


@lru_cache(maxsize=KEPT_MODELS)
def _matcher(name: str, device: str) -> Matcher:
    return load_matcher(name, device)


@lru_cache(maxsize=KEPT_MODELS)
def _cascade(device: str) -> tuple[Matcher, Callable[[], Matcher] | None]:
    """The matcher of many photos, and what gives the one for photos that it leaves out, which is loaded once."""
    first, fallback, _ = load_cascade(device)
    return first, None if fallback is None else lru_cache(fallback)


def _extracted(matcher: Matcher, photo: Photo) -> ExtractedImage:
    return extract_image(matcher, photo.rgb)


# --- files ---


def _as(kind: type[ResultType], result: Any, **more: Any) -> ResultType:
    """The result of a task as the class here that adds to it."""
    return kind(**{field.name: getattr(result, field.name) for field in fields(result)}, **more)


def _target(path: str | Path, names: Sequence[str], overwrite: bool) -> Path:
    target = outputs.check_output(path, [f".{name}" for name in names], overwrite)
    outputs.check_output(target.with_suffix(".json"), (".json",), overwrite)
    return target


def _made(sources: Sequence[Source], photos: Sequence[Photo]) -> dict[str, Any]:
    return Run().provenance(list(sources), [(photo.path, photo.sha256) for photo in photos], axes=AXES)


def _with_json(target: Path, document: dict[str, Any]) -> dict[str, Any]:
    write_json(target.with_suffix(".json"), document)
    return document
