"""`dune depth`: photos and videos to depth in metres."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console, plugins
from dune_cli.commands import options, videos
from dune_cli.commands.options import CameraOptions, ComputeOptions, ModelOptions, VideoOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings, head_size, sees_whole
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.commands.runtimes import RuntimeOptions
from dune_cli.commands.shards import (
    BatchShardOptions,
    compute_shards,
    each_once,
    one_camera,
    row_document,
    stored_weights,
    written,
)
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.intrinsics import PhotoCamera
    from dune_cli.io.photos import Photo
    from dune_cli.io.shards.files import Column
    from dune_cli.io.video import Frame
    from dune_cli.models.shared_backbone import SharedBackboneSlot
    from dune_cli.tasks.depth import Depth
    from dune_cli.tasks.large_folders.pipeline import PhotoResult

NEEDS = ("numpy", "torch", "cv2", "PIL")
WEIGHTS = (
    (
        "depth",
        "dune depth photo.jpg -o depth.png --model NAME",
        ("dinov2-vits14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "dinov2-vits14-kitti-dpt", "da3metric-large"),
    ),
)
PREDICT_TASK = "DepthTask"
FORMATS = sorted(plugins.names("dune_cli.io.formats", "write_depth"), key=lambda name: name != "png")  # default first
COLORMAPS = ("turbo", "inferno", "magma", "viridis", "grey")
COLOR_ENDING = "_color.png"


@options.group("Model")
class DepthOptions(ModelOptions):
    model: str | None = options.model_of(
        "DINOv2 depth heads, two-view models and Depth Anything 3", default_text=options.BEST_MODEL
    )
    size: int | None = options.size_px()
    flip: bool = option("--flip", "Average with the horizontally flipped prediction. Takes twice the time.")
    depth_range: str | None = option(
        "--depth-range MIN,MAX",
        "Depth range of a DINOv2 head, in metres.",
        default_text="0.001,10 for NYU heads, 0.001,80 for KITTI heads",
    )

    def bounds(self) -> tuple[float, float] | None:
        """--depth-range in metres. UserError for what is no range."""
        if self.depth_range is None:
            return None
        try:
            low, high = (float(part) for part in self.depth_range.split(","))
        except ValueError:
            low = high = 0.0
        if not 0 < low < high < float("inf"):
            raise UserError(f"--depth-range {self.depth_range!r} is no range; give MIN,MAX in metres, such as 0.001,10")
        return low, high


@options.group("Output")
class DepthOutput(PreviewedOutput):
    kind: str | None = options.file_format(FORMATS)
    colormap: str | None = option(
        f"--colormap [{'|'.join(COLORMAPS)}]",
        f"Also write a colour image NAME_color.png, near bright. Without a name: {COLORMAPS[0]}.",
        is_flag=False,
        flag_value=COLORMAPS[0],
    )
    output: str = options.output_to("a .png, .npz, .exr or .ply file for one photo, or a folder.", required=True)


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS_AND_VIDEOS,
    model: DepthOptions,
    video: VideoOptions,
    cameras: CameraOptions,
    compute: RuntimeOptions,
    output: DepthOutput,
    shards: BatchShardOptions,
) -> None:
    """Estimate the depth of photos and videos.

    Depth is z in metres, at every pixel of the photo. PNG files hold 16-bit depth times the JSON's png_scale (1000:
    millimetres), 0 where there is none. NPZ and EXR files hold float32 metres. PLY files hold the back-projected,
    coloured points. Without downloads, the head dune-depth comes with dune: rooms in rough metres, outdoors relative
    depth, as "scale" in the JSON says. A JSON file beside each file gives the camera, the depth range and the
    provenance. Without --intrinsics, --fov-deg and EXIF, the focal length follows from the points of a two-view model.
    The default --size is 640 px for NYU heads, 1216 px for KITTI heads, and the standard one of other models.

    Of Depth Anything 3, da3metric-large gives metres where the focal length is known (--intrinsics, --fov-deg or EXIF).
    Without it, and from da3mono-large, da3-small and da3-base, depth is relative: its median is 1, and the JSON says
    so. Sky is given the depth of the farthest hundredth of the rest.

    A video gives a folder with one file per frame, named by frame index (000000.png, ...). frames.jsonl holds one line
    per frame, with its time in seconds. video.json holds what is common to all frames, which have one camera.

    --shards writes the depth of large folders as WebDataset tar files, which hold a depth file and a JSON file for each
    photo. The same command goes on after a kill, and torchrun or --engine ray spread it over GPUs and machines.

    \b
    Example: dune depth photo.jpg -o depth.png --colormap
             dune depth photo.jpg -o cloud.ply --model dinov2-vits14-nyu-dpt --fov-deg 65
             dune depth photos/ -o depths/ --format npz --model mast3r-vitl
             dune depth photo.jpg -o depth.png --model da3metric-large --fov-deg 65
             dune depth clip.mp4 -o depths/ --fps 5 --colormap
             dune depth photos/ -o depths/ --shards
    """
    if shards.wanted:
        shards.refuse_with(
            colormap=output.colormap, fps=video.fps, preview=output.preview, runtime=compute.other_runtime
        )
        one_camera(cameras)
        verb = DepthShards.of(model, cameras, compute, output.kind or FORMATS[0], shards.batch_size)
        return compute_shards(verb, photos, shards, compute, output)
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.outputs import places

    bounds = model.bounds()
    paths = expand(photos, videos=True)
    video.check(paths)
    preview = output.wants_preview(*(f".{name}" for name in FORMATS), pictured=output.colormap is not None)
    beside = (".json", *[COLOR_ENDING] * bool(output.colormap), *[PREVIEW] * preview)
    targets = places(paths, output.output, output.kind, FORMATS, output.overwrite, beside)
    chosen = model.choose("depth")
    device, dtype = compute.placed

    run = Run()

    def read() -> Iterator[tuple[Photo, PhotoCamera]]:
        for path, camera in zip(paths, cameras.one_by_one(len(paths))):
            with run.stage("read"):
                photo = videos.read_first(path)
                known = camera.resolve_cameras([photo])[0]
            yield photo, known

    ahead = read()
    first = next(ahead)  # mistakes in photos and cameras show before torch is imported and the weights are read

    from dune_cli.checkpoints.loader import load_depth
    from dune_cli.io.json_files import write_json
    from dune_cli.io.outputs import sibling
    from dune_cli.io.video import VideoFiles, frame_file
    from dune_cli.tasks import depth as task

    with run.stage("load"):
        loaded = load_depth(chosen, model.encoder, device, dtype, bounds)
        network, number_type = compute.apply(loaded, "depth", run)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")

    def provenance(photo: Photo) -> dict[str, Any]:
        axes = "OpenCV: x right, y down, z forward"
        inputs = [(photo.path, photo.sha256)]
        return run.provenance(network.sources, inputs, **number_type, flip=model.flip, axes=axes)

    def predict_video(first: Photo, camera: PhotoCamera, folder: Path) -> dict[str, Any]:
        def write(frame: Frame, result: Depth) -> tuple[dict[str, Any], list[Path]]:
            file = frame_file(folder, frame.index, output.kind or FORMATS[0])
            return task.document(result, file, _write(result, file, output.colormap, bool(output.preview)), {}), [file]

        known = {"camera": (camera.K, camera.source), "lens": camera.camera}
        predict = partial(task.predict_frames, network, **known, size_px=model.size, flip=model.flip, run=run)
        job = videos.VideoJob("depth", first, video.fps, VideoFiles.in_folder(folder), run, output)
        return videos.process(job, predict, write, dict, partial(provenance, first))

    documents: list[dict[str, Any]] = []
    told: set[str] = set()
    for (photo, camera), target in videos.progress(zip(chain([first], ahead), targets), "depth", paths):
        if is_video(photo.path):
            documents.append(predict_video(photo, camera, target))
            continue
        known = (camera.K, camera.source)
        result = task.predict(network, photo, known, model.size, model.flip, run, camera.camera)
        with run.stage("write"):
            facts = _write(result, target, output.colormap, preview)
        documents.append(task.document(result, target, facts, provenance(photo)))
        if result.expected is not None and str(result.expected) not in told:
            told.add(str(result.expected))
            console.note(f"{network.source.name}, {result.expected}")
        write_json(sibling(target, ".json"), documents[-1])
        output.print_lines(target)
    output.print_json(documents)


def _write(result: Depth, target: Path, colormap: str | None, preview: bool) -> dict[str, Any]:
    """Writes the depth, with `colormap` its image, and its preview. What the JSON says of them."""
    from dune_cli.io.depth_files import colored
    from dune_cli.io.outputs import sibling
    from dune_cli.io.png import save_png
    from dune_cli.tasks import depth as task

    facts = task.write(result, target)
    if colormap:
        picture = sibling(target, COLOR_ENDING)
        save_png(picture, colored(result.depth, colormap))
        facts["colormap"] = {"file": picture.name, "name": colormap}
    if preview:
        from dune_cli import previews

        facts["preview"] = previews.save(previews.picture(result), sibling(target, PREVIEW))
    return facts


class DepthTask(PredictTask):
    """The depth of `dune predict`."""

    name = "depth"
    file = "depth.png"

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.model = ModelOptions(model=settings.model, encoder=settings.encoder).choose("depth")

    def load(self) -> None:
        from dune_cli.checkpoints.loader import load_depth

        compute = self.settings.compute
        self.network = load_depth(self.model, self.settings.encoder, compute.device, compute.dtype)
        self.sources = self.network.sources  # before encoders are shared, whose files may differ
        self.whole = sees_whole(self.network)

    def slot(self) -> SharedBackboneSlot | None:
        from dune_cli.models.depth_anything3 import MonocularDepth, MultiViewDepth
        from dune_cli.models.mast3r import DunePatches, TwoViewDepth
        from dune_cli.models.shared_backbone import SharedBackboneSlot, head_slot

        if isinstance(self.network, (MonocularDepth, MultiViewDepth)):  # no other task reads their backbones
            return None
        if not isinstance(self.network, TwoViewDepth):
            return head_slot(self.name, self.network)
        encoder = self.network.model.encoder
        return SharedBackboneSlot(self.name, encoder, "vit") if isinstance(encoder, DunePatches) else None

    def shared_size(self, photo: Photo, patch: int) -> int | None:
        """Its own size; of a DINOv2 head that or the next smaller one, of at least 3/4, at which nothing is cropped."""
        from dune_cli.models.mast3r import TwoViewDepth
        from dune_cli.tasks import depth

        if isinstance(self.network, TwoViewDepth):  # crops photos to patches
            return self.network.model.size
        if self.whole:
            return head_size(self.network, photo)
        long, short = max(photo.width, photo.height), min(photo.width, photo.height)
        largest = min(depth.default_size_px(self.network), long)
        sizes = range(largest // patch * patch, int(0.75 * largest), -patch)
        return next((size for size in sizes if round(short * (size / long)) % patch == 0), None)

    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        from dune_cli.tasks import depth

        camera = cameras.resolve_cameras([photo])[0]
        result = depth.predict(self.network, photo, (camera.K, camera.source), size, run=run, lens=camera.camera)
        self.pictured = (result,)
        return depth.document(result, path, depth.write(result, path), {})

    def verb_options(self) -> dict[str, Any]:
        return {"--encoder": self.settings.encoder}


@dataclass(frozen=True)
class DepthShards:
    """Depth in shards: a depth file and a JSON file for each photo."""

    model: str
    encoder: str | None
    size: int | None
    flip: bool
    depth_range: tuple[float, float] | None
    intrinsics: str | None
    fov_deg: float | None
    dtype: str
    format: str
    batch_size: int

    name = "depth"
    kind = "tar"

    @classmethod
    def of(
        cls, model: DepthOptions, cameras: CameraOptions, compute: ComputeOptions, format: str, batch_size: int
    ) -> DepthShards:
        """UserError or WeightsMissing for a model that is not here."""
        chosen, encoder = stored_weights(model.choose("depth"), model.encoder)
        assert chosen is not None
        given = (model.size, model.flip, model.bounds(), cameras.intrinsics, cameras.fov_deg, compute.dtype)
        return cls(chosen, encoder, *given, format, batch_size)

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str) -> DepthShardNetwork:
        from dune_cli.checkpoints.loader import load_depth

        return DepthShardNetwork(load_depth(self.model, self.encoder, device, self.dtype, self.depth_range), self)


class DepthShardNetwork:
    """A depth model as shards use it."""

    columns: Sequence[Column] = ()
    keeps_pixels = True

    def __init__(self, network: Any, verb: DepthShards) -> None:
        self.network, self.verb, self.sources = network, verb, network.sources
        self.cameras = CameraOptions(intrinsics=verb.intrinsics, fov_deg=verb.fov_deg)
        self.is_head = sees_whole(network)

    def prepare(self, photo: Photo) -> tuple[Hashable, tuple[Photo, PhotoCamera, Any]]:
        from dune_cli.tasks import depth

        camera = self.cameras.resolve_cameras([photo])[0]
        if not self.is_head or not camera.camera.is_pinhole:
            return None, (photo, camera, None)
        prepared = depth.head_input(self.network, photo, self.verb.size)
        return prepared.image.shape, (photo, camera, prepared)

    def predict(self, inputs: Sequence[tuple[Photo, PhotoCamera, Any]]) -> list[Any]:
        from dune_cli.tasks import depth

        if inputs[0][2] is not None:
            outputs = depth.head_outputs(self.network, [prepared for *_, prepared in inputs], self.verb.flip)
            return [(camera, prepared, output) for (_, camera, prepared), output in zip(inputs, outputs)]
        return each_once(self._depth, inputs)

    def _depth(self, given: tuple[Photo, PhotoCamera, Any]) -> Depth:
        from dune_cli.tasks import depth

        photo, camera, _ = given
        known = (camera.K, camera.source)
        return depth.predict(self.network, photo, known, self.verb.size, self.verb.flip, lens=camera.camera)

    def finish(self, photo: Photo, result: Any) -> PhotoResult:
        from dune_cli.tasks import depth
        from dune_cli.tasks.large_folders.pipeline import PhotoResult

        if isinstance(result, tuple):
            camera, prepared, output = result
            result = depth.depth_of_head(self.network, photo, (camera.K, camera.source), prepared, output)
        name = f"depth.{self.verb.format}"
        content, facts = written(name, lambda path: depth.write(result, path))
        return PhotoResult(files={name: content}, document=row_document(depth.document(result, Path(name), facts, {})))
