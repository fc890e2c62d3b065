"""`dune human`: people in photos and videos as meshes (OBJ, GLB, PLY), animations (GLB, BVH) and parameters (JSON)."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console, plugins
from dune_cli.commands import checks, options, videos
from dune_cli.commands.options import CameraOptions, ComputeOptions, ModelOptions, VideoOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.commands.shards import ShardOptions, compute_shards, each_once, one_camera, row_document, stored_weights
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.intrinsics import PhotoCamera
    from dune_cli.io.photos import Photo
    from dune_cli.io.shards.files import Column
    from dune_cli.io.video import Frame
    from dune_cli.models.shared_backbone import SharedBackboneSlot
    from dune_cli.tasks.human import AnimationOptions, HumanModel, PhotoPeople
    from dune_cli.tasks.large_folders.pipeline import PhotoResult

    CameraPhoto = tuple[Photo, PhotoCamera | None]  # a photo, and its camera where it is known

NEEDS = ("numpy", "torch", "cv2", "PIL", "scipy", "tqdm")
WEIGHTS = (
    ("people", "dune human photo.jpg -o people.obj", ("dune-people",)),
    (
        "people in metres, by Multi-HMR",
        "dune human photo.jpg -o people.obj --model NAME",
        ("multihmr-672-s", "multihmr-672-l-anny", "multihmr-896-l"),
    ),
)
BUNDLED = "dune-people"
SHORT_NAMES = {"bundled": BUNDLED}
SMALLEST_M, TALLEST_M = options.HEIGHT_M.min, options.HEIGHT_M.max
DOUBTFUL = 0.5  # a confidence of the fit that a note tells of
PREDICT_TASK = "HumanTask"
FORMATS = [  # of those for scenes, default first
    name
    for name in sorted(plugins.names("dune_cli.io.formats", "write_scene"), key=lambda name: name != "obj")
    if "surface" in plugins.constant("dune_cli.io.formats", name, "CONTENT")
]
ANIMATIONS = tuple(f".{name}" for name in plugins.names("dune_cli.io.formats", "write_animation"))


@options.group("Model")
class BodyOptions:
    body_models: str | None = option(
        "--body-models DIR",
        "Folder with smplx/SMPLX_NEUTRAL.npz, for models on SMPL-X.",
        default_text="the weights folder",
    )
    min_score: float = option("--min-score X", "Minimum detection score of a person's head.", options.FRACTION, 0.3)


@options.group("Model")
class HumanOptions(BodyOptions):
    model: str | None = options.model_of(
        "Multi-HMR on Anny or SMPL-X, heads of dune train human, or 'bundled': Anny fitted to the joints of open "
        "networks",
        default_text="multihmr-672-l-anny, else the best Multi-HMR file here, else bundled",
    )
    encoder: str | None = options.changed(ModelOptions, "encoder")
    heights: tuple[str, ...] = option(
        "--height METRES,...",
        "Standing heights of the people, in metres, which set their sizes and distances: one for all, or one for each "
        "from left to right. For --model bundled and --joints.",
        options.NameList(distinct=False),
        default_text="1.70, of adults",
    )
    joints: str | None = option(
        "--joints FILE",
        "Joints to fit Anny to, instead of a model: COCO keypoints or OpenPose JSON in pixels of the photos, or named "
        "3-D joints in metres.",
        default_text="by the model",
    )
    which: str = option(
        "--select largest|N|all", "People to keep: the largest in the photo, the N largest, or all.", default="all"
    )

    def chosen_model(self) -> str | None:
        """The model's name or file; None where joints are given. UserError or WeightsMissing where it cannot be."""
        if self.joints is not None:
            if self.model is not None or self.encoder is not None:
                raise UserError("--model and --joints both say where joints come from; give one of them")
            return None
        model = SHORT_NAMES.get(self.model or "", self.model)
        return ModelOptions(model=model, encoder=self.encoder).choose("human")

    def standing_heights(self) -> tuple[float, ...] | None:
        """--height in metres. UserError for what is no height of a person."""
        if not self.heights:
            return None
        try:
            heights = tuple(float(text) for text in self.heights)
        except ValueError:
            heights = ()
        if not heights or not all(SMALLEST_M <= height <= TALLEST_M for height in heights):
            raise UserError(
                f"--height {','.join(self.heights)} is no height of people; give metres from {SMALLEST_M} to "
                f"{TALLEST_M}, such as 1.68 or 1.68,1.80"
            )
        return heights

    def check_inputs(self, paths: list[Path], animated: bool) -> None:
        """UserError for what goes with photos only, where there are videos or an animation."""
        from dune_cli.io.inputs import is_video

        if animated or any(map(is_video, paths)):
            if self.joints is not None:
                raise UserError(
                    "--joints is for photos, and a video or an animation was named; give its frames as photos, and -o "
                    "a folder"
                )
            if len(self.heights) > 1:
                raise UserError("of a video or an animation --height takes one height for all people; give one")


@options.group("Output")
class HumanOutput(PreviewedOutput):
    output: str | None = options.output_to(
        "meshes as .obj (one group per person), .glb (with the camera) or .ply for one photo, an animation as .glb or "
        ".bvh of one video, or a folder."
    )
    kind: str | None = options.file_format(FORMATS)
    overlay: str | None = option("--overlay PATH", "PNG file or folder for photos with the bodies drawn over them.")
    top_view: str | None = option("--top-view PATH", "PNG file or folder for views from above, on a grid in metres.")
    person: str | None = option(
        "--person ID|longest|all",
        "Person of an animation: by number, the one in the most frames, or all (several .bvh files, numbered).",
        default_text="all",
    )
    smooth: bool = option("--smooth", "Smooth an animation forwards and backwards (Kalman smoother; no lag).")

    @property
    def previews(self) -> bool:
        """Whether photos get previews beside their meshes."""
        endings = (*(f".{name}" for name in FORMATS), *ANIMATIONS)
        return self.wants_preview(*endings, pictured=self.overlay is not None)

    def animates(self, paths: list[Path]) -> bool:
        """Whether -o names an animation: a file with an ending of ANIMATIONS, of one video or of several photos."""
        from dune_cli.io.inputs import is_video

        file = None if self.output is None else Path(self.output).expanduser()
        clip = is_video(paths[0]) if len(paths) == 1 else not any(map(is_video, paths))
        return clip and file is not None and file.suffix.lower() in ANIMATIONS and not file.is_dir()

    def animation(self, paths: list[Path]) -> AnimationOptions | None:
        """How an animation is made; None where there is none. UserError for its options without it."""
        if not self.animates(paths):
            for name, given in (("--person", self.person), ("--smooth", self.smooth)):
                if given:
                    raise UserError(
                        f"{name} is for animations, and -o names none; give one video, or photos and --fps, and -o "
                        f"with an ending of {' '.join(ANIMATIONS)}, or leave {name} out"
                    )
            return None
        from dune_cli.tasks.human import AnimationOptions, MotionSmoothing

        return AnimationOptions(self.person or "all", MotionSmoothing() if self.smooth else None)

    def _animation_file(self) -> Path:
        """The file of an animation. UserError where it or those beside it cannot be written."""
        from dune_cli.io.outputs import check_output, refuse_existing

        file = Path(self.output).expanduser()
        if self.kind is not None:
            raise UserError(f"--format is that of the files in a folder, and {file} is an animation; leave it out")
        for ending in (file.suffix, ".json", ".jsonl"):
            check_output(file.with_suffix(ending), (ending.lower(),), self.overwrite)
        for other in file.parent.glob(f"{glob.escape(file.stem)}_[0-9][0-9][0-9]*{file.suffix}"):
            refuse_existing(other, self.overwrite or file.suffix.lower() != ".bvh")
        return file

    def targets(self, paths: list[Path]) -> list[dict[str, Path]]:
        """The files to write for each photo: "mesh", "overlay", "top view"; folders for a video, and "animation", a
        file. UserError for what cannot be written."""
        from dune_cli.io.inputs import is_video
        from dune_cli.io.outputs import places

        wanted: dict[str, list[Path]] = {}
        if self.preview and (self.output is None or self.animates(paths)):
            raise UserError("--preview goes beside the meshes of -o; name a mesh file or a folder, or take --overlay")
        if self.animates(paths):
            wanted["animation"] = [self._animation_file()]
        elif self.output is not None:
            beside = (".json", *[PREVIEW] * self.previews)
            wanted["mesh"] = places(paths, self.output, self.kind, FORMATS, self.overwrite, beside)
        elif any(map(is_video, paths)):
            raise UserError("the people of a video go into a folder of files; name it with -o")
        elif self.kind is not None:
            raise UserError("--format is that of the files in a folder -o; name the folder with -o")
        for name, place in (("overlay", self.overlay), ("top view", self.top_view)):
            if place is not None:
                if "animation" in wanted:
                    wanted[name] = [self._clip_folder(name, Path(place).expanduser())]
                else:
                    wanted[name] = places(paths, place, None, ("png",), self.overwrite)
        if not wanted and not self.as_json:
            raise UserError("nothing to write: give -o (.obj, .glb, .ply or a folder), --overlay, --top-view or --json")
        overlay, above = wanted.get("overlay"), wanted.get("top view")
        if overlay and above and overlay[0].resolve() == above[0].resolve():
            raise UserError(f"--overlay and --top-view would both write {overlay[0]}; name two places")
        return [
            {name: files[k] for name, files in wanted.items()}
            for k in range(1 if "animation" in wanted else len(paths))
        ]

    def _clip_folder(self, name: str, folder: Path) -> Path:
        """The folder of an animation's pictures. UserError where it cannot be written."""
        from dune_cli.io.outputs import check_output_folder

        if folder.suffix and not folder.is_dir():
            raise UserError(f"the {name}s of an animation's frames do not fit into one file {folder}; name a folder")
        return check_output_folder(folder, self.overwrite)


@options.group("Input")
class HumanVideo(VideoOptions):
    fps: float | None = options.fps(
        "Frames per second to take from a video; the photos per second, where photos become an animation.", "all frames"
    )

    def check_animation(self, paths: list[Path]) -> bool:
        """Whether the frames of an animation are photos. UserError where their rate is not given."""
        from dune_cli.io.inputs import is_video

        if is_video(paths[0]):
            return False
        if self.fps is None:
            raise UserError(
                f"{len(paths)} photos make an animation only with their rate; give --fps, such as --fps 10, or a "
                "folder with -o for a file a photo"
            )
        return True


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS_AND_VIDEOS,
    people: HumanOptions,
    video: HumanVideo,
    cameras: CameraOptions,
    compute: ComputeOptions,
    output: HumanOutput,
    shards: ShardOptions,
) -> None:
    """Estimate the bodies of people in photos and videos.

    Bodies are in metres, in the camera frame (x right, y down, z forward). Writes meshes, and beside them a JSON file
    with the pose, shape, position and joints of each person. Pixels are those of the photo. Without --intrinsics,
    --fov-deg and EXIF, Multi-HMR's Anny model predicts the camera, SMPL-X models assume a field of view of 60 degrees,
    and 'bundled' one of 55. A photo with a lens is undistorted for the networks, up to 60 degrees from the axis.
    A photo without people gives an empty list and exit code 0.

    'bundled' needs no downloads: open networks find joints, and the Anny body is fitted to them. A photo does not tell
    how tall people are, so it assumes adults of 1.70 m, unless --height says otherwise; distances follow from that. The
    JSON says how sure each joint and each fit is. Statues and people in pictures count as people. --joints fits the
    body to joints from a file.

    A video gives a folder with one mesh file per frame, named by frame index (000000.obj, ...). frames.jsonl holds the
    people of one frame per line, with its time in seconds. video.json holds what is common to all: the camera, the
    body model, and when each person was visible. Tracking by head position in metres keeps the ID and colour of a
    person. It allows 6 m/s and gaps of one second. The camera should stand still or move slowly.

    -o walk.glb of a video writes an animation instead: a skinned body and a skeleton for each person, moved by one
    glTF animation. -o walk.bvh writes the skeletons alone, a file for each person. Both are in metres, y up, and keep
    one shape per person. walk.jsonl and walk.json hold what frames.jsonl and video.json do. --smooth takes out the
    jitter of the frames. Several photos of one size with --fps are taken as a clip too.

    --shards writes the people of large folders as Parquet files, a row for each photo, without meshes. The same command
    goes on after a kill, and torchrun or --engine ray spread it over GPUs and machines.

    \b
    Example: dune human photo.jpg -o people.obj --overlay overlay.png
             dune human photo.jpg --height 1.62,1.80 -o people.glb
             dune human photo.jpg --joints keypoints.json -o people.obj
             dune human photo.jpg --intrinsics calibration.yaml -o people.glb --overlay overlay.png
             dune human photo.jpg --model run/head.safetensors -o people.obj
             dune human photo.jpg --model multihmr-896-l --body-models ~/models -o people.glb
             dune human photos/ --format glb -o people/ --overlay overlays/
             dune human clip.mp4 --fps 10 -o people/ --overlay overlays/
             dune human clip.mp4 -o walk.glb --smooth
             dune human clip.mp4 -o walk.bvh --person longest
             dune human frames/ --fps 25 -o walk.glb
             dune human photo.jpg --json > people.json
             dune human photos/ -o people/ --shards
    """
    if shards.wanted:
        verb = HumanShards.of(people, cameras, compute)
        names = ("overlay", "top_view", "person", "smooth")
        shards.refuse_with(
            joints=people.joints,
            fps=video.fps,
            preview=output.preview,
            format=output.kind,
            **{name: getattr(output, name) for name in names},
        )
        one_camera(cameras)
        return compute_shards(verb, photos, shards, compute, output)
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.joint_files import read_joint_file

    paths = expand(photos, videos=True)
    animated = output.animates(paths)
    of_photos = animated and video.check_animation(paths)
    if not animated:
        video.check(paths)
    targets = output.targets(paths)
    heights, chosen = people.standing_heights(), people.chosen_model()
    people.check_inputs(paths, animated)
    animation = output.animation(paths)

    checks.first_photo([path for path in paths if not is_video(path)][:1])
    joints = None if chosen is not None else read_joint_file(people.joints)

    from dune_cli.io.json_files import write_json
    from dune_cli.io.video import PhotoSequence, VideoFiles, frame_file
    from dune_cli.tasks import human

    human.parse_selection(people.which)
    run = Run()
    sequence = PhotoSequence(paths, video.fps) if of_photos else None
    paths = paths[:1] if of_photos else paths

    def read() -> Iterator[CameraPhoto]:
        for path, camera in zip(paths, cameras.one_by_one(len(paths))):
            with run.stage("read"):
                photo = videos.read_first(path)
            yield photo, human.cameras([photo], camera.intrinsics, camera.fov_deg)[0]

    ahead = read()
    first = next(ahead)  # mistakes in photos and cameras show before gigabytes of weights are read
    with run.stage("load"):
        if chosen is None:
            model = human.load_fitter()
            sources = [model.body.source]
        else:
            model = human.load_human(chosen, people.body_models, compute.device, compute.dtype, people.encoder)
            sources = model.sources
    if heights is not None and isinstance(model, human.HumanModel):
        raise UserError(f"{model.source.name} predicts sizes in metres; leave --height out, or take --model bundled")
    for used in sources:
        console.note(f"{used.name}, licence: {used.licence}")

    def provenance(photo: Photo) -> dict[str, Any]:
        inputs = [(photo.path, photo.sha256)] if sequence is None else sequence.inputs
        return run.provenance(sources, inputs, dtype=compute.dtype, units="metre", axes="OpenCV")

    def predict_video(first: Photo, known: PhotoCamera | None, folders: dict[str, Path]) -> dict[str, Any]:
        tracks, camera = human.TrackSummary(), {}
        file = folders.pop("animation", None)
        recorder = None if file is None else human.MotionRecorder(model, animation)

        def write(frame: Frame, found: PhotoPeople) -> tuple[dict[str, Any], list[Path]]:
            kept = human.select(found, people.which)
            files = {name: frame_file(folder, frame.index, endings[name]) for name, folder in folders.items()}
            _write(model, kept, files, bool(output.preview))
            tracks.add(frame, kept)
            document = human.describe_photo(kept, files.get("mesh"))
            if recorder is not None:
                recorder.add(frame, kept)
            camera.update(document["camera"])
            return document, list(files.values())

        def metadata() -> dict[str, Any]:
            moved = {} if recorder is None else {"animation": recorder.write(file)}
            return {"camera": camera, "body_model": human.describe_body(model), "people": tracks.as_json(), **moved}

        if video.fps is not None and video.fps < 1:
            console.note("these frames are over a second apart, so tracking IDs do not persist")
        height = None if heights is None else heights[0]
        predict = partial(human.predict_frames, model, camera=known, min_score=people.min_score, run=run, height=height)
        files = VideoFiles.in_folder(folders["mesh"]) if file is None else VideoFiles.beside(file)
        job = videos.VideoJob("human", first, video.fps, files, run, output, sequence)
        summary = videos.process(job, predict, write, metadata, partial(provenance, first))
        if file is not None:
            output.print_lines(*(file.with_name(name) for name in summary["animation"]["files"]))
        count = len(summary["people"])
        console.note(f"{first.path.name}: {'1 person' if count == 1 else f'{count} different people'}")
        return summary

    endings = {"mesh": output.kind or FORMATS[0], "overlay": "png", "top view": "png"}
    documents = []
    for (photo, camera), files in videos.progress(zip(chain([first], ahead), targets), "human", paths):
        if animated or is_video(photo.path):
            documents.append(predict_video(photo, camera, files))
            continue
        with run.stage("predict"):
            if chosen is None:
                found = human.predict_from_joints(model, photo, joints.of(photo.path, len(paths)), camera, heights)
            else:
                found = human.predict(model, photo, camera, people.min_score, heights)
        kept = human.select(found, people.which)
        _note_people(found, kept, None if chosen is None else people.min_score)
        with run.stage("write"):
            shown = _write(model, kept, files, output.previews)
        documents.append(human.document(model, kept, files.get("mesh"), provenance(photo)) | shown)
        if "mesh" in files:
            write_json(files["mesh"].with_suffix(".json"), documents[-1])
        output.print_lines(*files.values())
    output.print_json(documents)


def _note_people(found: PhotoPeople, kept: PhotoPeople, min_score: float | None) -> None:
    """min_score: None where joints were given."""
    name = found.photo.path.name
    if not found.people:
        reason = "the file has nobody with 4 joints" if min_score is None else f"a score of at least {min_score:g}"
        console.note(f"{name}: {reason}" if min_score is None else f"{name}: no person has {reason}")
        return
    distances = ", ".join(f"{float(person.head[2]):.2f} m" for person in kept.people[:5])
    more = ", ..." if len(kept.people) > 5 else ""
    left_out = len(found.people) - len(kept.people)
    besides = f"; {left_out} left out by --select" if left_out else ""
    word = "person" if len(kept.people) == 1 else "people"
    console.note(f"{name}: {len(kept.people)} {word} at {distances}{more}{besides}")
    doubtful = [f"{number} ({p.fit_confidence:.2f})" for number, p in zip(kept.ids, kept.people) if _is_doubtful(p)]
    if doubtful:
        console.note(f"{name}: the body of person {', '.join(doubtful)} may be wrong (confidence of the fit)")
    assumed = found.assumed_height
    if assumed is not None and not assumed.given:
        settable = "; --height sets it" if hasattr(found.people[0], "height") else ""
        console.note(
            f"{name}: sizes and distances assume adults of {assumed.mean:.2f} m (deviation {assumed.sd:.2f} m): "
            f"children come out too tall and too far away{settable}"
        )


def _is_doubtful(person: Any) -> bool:
    return getattr(person, "fit_confidence", 1.0) < DOUBTFUL


def _write(model: HumanModel, found: PhotoPeople, files: dict[str, Path], preview: bool) -> dict[str, Any]:
    """Writes the files, and the preview beside the mesh. What the JSON says of the latter."""
    from dune_cli.io.outputs import sibling
    from dune_cli.tasks import human

    writers = {"mesh": human.write_meshes, "overlay": human.write_overlay, "top view": human.write_top_view}
    meshes = human.meshes(model, found.people, found.ids)
    for name, path in files.items():
        writers[name](path, meshes, found)
    if not preview or "mesh" not in files:
        return {}
    from dune_cli import previews

    return {"preview": previews.save(previews.picture(found, meshes), sibling(files["mesh"], PREVIEW))}


class HumanTask(PredictTask):
    """The people of `dune predict`."""

    name = "human"
    file = "people.obj"
    sized = False  # the network input is a square of the model's own size

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.model = HumanOptions(model=settings.model).chosen_model()

    def load(self) -> None:
        from dune_cli.tasks import human

        compute = self.settings.compute
        self.people = human.load_human(self.model, self.settings.body_models, compute.device, compute.dtype)
        self.sources = self.people.sources

    def slot(self) -> SharedBackboneSlot | None:
        from dune_cli.models.shared_backbone import SharedBackboneSlot

        network = self.people.network
        if not hasattr(network, "backbone"):
            return None  # small convolutional networks, which share nothing
        return SharedBackboneSlot(self.name, network.encoder if network.body == "anny" else network, "backbone")

    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        from dune_cli.tasks import human

        known = human.cameras([photo], cameras.intrinsics, cameras.fov_deg)[0]
        with run.stage("network"):
            found = human.predict(self.people, photo, known, self.settings.min_score)
        meshes = human.meshes(self.people, found.people)
        human.write_meshes(path, meshes, found)
        self.pictured = (found, meshes)
        return human.document(self.people, found, path, {})

    def verb_options(self) -> dict[str, Any]:
        return {"--body-models": self.settings.body_models, "--min-score": self.settings.min_score}


@dataclass(frozen=True)
class HumanShards:
    """People in shards: a Parquet row for each photo, without meshes."""

    model: str
    body_models: str | None
    min_score: float
    heights: tuple[float, ...] | None
    which: str
    intrinsics: str | None
    fov_deg: float | None
    dtype: str

    name = "human"
    kind = "parquet"
    batch_size = 1

    @classmethod
    def of(cls, people: HumanOptions, cameras: CameraOptions, compute: ComputeOptions) -> HumanShards:
        """UserError or WeightsMissing for what cannot be computed."""
        heights = people.standing_heights()
        if heights is not None and len(heights) > 1:
            raise UserError("with --shards --height takes one height for all people; give one")
        (model,) = stored_weights(None if people.joints else people.chosen_model())
        given = (people.body_models, people.min_score, heights, people.which)
        return cls(model or "", *given, cameras.intrinsics, cameras.fov_deg, compute.dtype)

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str) -> HumanShardNetwork:
        from dune_cli.tasks import human

        human.parse_selection(self.which)
        model = human.load_human(self.model, self.body_models, device=device, dtype=self.dtype)
        if self.heights is not None and isinstance(model, human.HumanModel):
            raise UserError(f"{model.source.name} predicts sizes in metres; leave --height out")
        return HumanShardNetwork(model, self)


class HumanShardNetwork:
    """A model of people as shards use it."""

    keeps_pixels = False

    def __init__(self, model: HumanModel, verb: HumanShards) -> None:
        self.model, self.verb = model, verb
        self.sources = [model.source, model.body.source]

    @property
    def columns(self) -> list[Column]:
        from dune_cli.io.shards.files import Column

        return [Column("people", "int32"), Column("document", "string")]

    def prepare(self, photo: Photo) -> tuple[None, CameraPhoto]:
        from dune_cli.tasks import human

        return None, (photo, human.cameras([photo], self.verb.intrinsics, self.verb.fov_deg)[0])

    def predict(self, inputs: Sequence[CameraPhoto]) -> list[PhotoPeople]:
        from dune_cli.tasks import human

        verb = self.verb
        return each_once(lambda given: human.predict(self.model, *given, verb.min_score, verb.heights), inputs)

    def finish(self, photo: Photo, found: PhotoPeople) -> PhotoResult:
        from dune_cli.tasks import human
        from dune_cli.tasks.large_folders.pipeline import PhotoResult

        kept = human.select(found, self.verb.which)
        document = row_document(human.document(self.model, kept, None, {}))
        return PhotoResult(columns={"people": len(kept.people)}, document=document)
