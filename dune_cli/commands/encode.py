"""`dune encode`: photos to features (NPZ) or PCA images (PNG)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import CameraOptions, ComputeOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.commands.runtimes import RuntimeOptions
from dune_cli.commands.shards import ShardOptions, compute_shards, stored_weights
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo, PhotoInfo
    from dune_cli.io.preprocess import Prepared
    from dune_cli.io.shards.files import Column
    from dune_cli.models.shared_backbone import SharedBackboneSlot
    from dune_cli.tasks.encode import EncoderFeatures
    from dune_cli.tasks.large_folders.pipeline import PhotoResult

NEEDS = ("numpy", "torch")  # packages without which the verb fails; it works without downloaded weights
WEIGHTS = (
    (
        "features",
        "dune encode photo.jpg -o features.npz --model NAME",
        ("dune-mini", "dinov2-vits14", "dinov2-vitl14-reg", "dune-vitb14-448"),
    ),
)
DEFAULT_MODEL = "dune-mini"
PREDICT_TASK = "FeaturesTask"
FORMATS = ("npz", "png")
TOKENS = ("cls", "registers", "patches")


@options.group("Model")
class EncoderOptions:
    model: str = options.model_of("encoders, also timm:NAME and timm:NAME=FILE", default=DEFAULT_MODEL)
    teacher: str | None = option("--teacher NAME", "Teacher whose tokens to predict, by the encoder's projector.")
    size: int | None = options.size_px()
    fit: str = option(
        "--fit [crop|stretch]",
        "Way to whole patches. crop: the border is cut off. stretch: the whole photo is resized.",
        default="crop",
    )
    batch_size: int = option("--batch-size N", "Number of photos per forward pass.", options.COUNT, 1)


@options.group("Shards")
class FeatureShardOptions(ShardOptions):
    tokens: tuple[str, ...] = option(
        "--tokens NAME,...",
        f"Tokens to keep in shards: {', '.join(TOKENS)}. Patches take hundreds of times as much room as cls.",
        options.NameList(),
        default_text=",".join(TOKENS),
    )

    def kept_tokens(self) -> tuple[str, ...]:
        """--tokens. UserError for what is none."""
        unknown = [name for name in self.tokens if name not in TOKENS]
        if unknown:
            raise UserError(f"--tokens {','.join(self.tokens)}: {unknown[0]} is unknown; allowed: {', '.join(TOKENS)}")
        return tuple(name for name in TOKENS if name in self.tokens) or TOKENS

    def refuse_tokens(self) -> None:
        """UserError for --tokens without --shards."""
        if self.tokens:
            raise UserError("--tokens is for shards, an .npz file holds all of them; add --shards, or leave it out")


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    model: EncoderOptions,
    kind: str | None = options.file_format(FORMATS),
    compute: RuntimeOptions,
    output: PreviewedOutput = options.adapt(
        output=options.output_to("a .npz or .png file for one photo, or a folder.", required=True)
    ),
    shards: FeatureShardOptions,
) -> None:
    """Compute encoder features of photos, or a PCA image of them.

    A NPZ file holds the arrays cls (D), registers (R, D) and patches (h, w, D): D is the width of the encoder, h x w
    its patch grid. A JSON file beside each output gives the model, its licence and the pixel transform. The default
    size is the encoder's native one: 336, 448 or 518 px.

    --shards writes the features of large folders as Parquet files, a row for each photo. The same command goes on after
    a kill, and torchrun or --engine ray spread it over GPUs and machines; the bytes stay the same.

    \b
    Example: dune encode photo.jpg -o pca.png
             dune encode photo.jpg --model dune-vitb14-448 -o features.npz
             dune encode photos/ --model dinov2-vits14 --format png -o pca/
             dune encode photos/ --runtime onnx -o features/
             dune encode photo.jpg --model dune-vitb14-448 --teacher dino2reg_vitlarge_14 -o dino.npz
             dune encode photos/ -o features/ --tokens cls --shards
             torchrun --nproc-per-node 8 -m dune_cli.cli encode s3://bucket/photos -o features/ --batch-size 64 --shards
    """
    if shards.wanted:
        shards.refuse_with(format=kind, preview=output.preview, runtime=compute.other_runtime)
        return compute_shards(EncodeShards.of(model, compute, shards), photos, shards, compute, output)
    shards.refuse_tokens()
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import sibling, targets

    paths = expand(photos)
    pictures = (kind or Path(output.output).suffix.removeprefix(".").lower()) == "png"
    preview = output.wants_preview(*(f".{name}" for name in FORMATS), pictured=pictures)
    beside = (".json", *[PREVIEW] * preview)
    files = targets(paths, output.output, kind, FORMATS, output.overwrite, beside)
    checks.weights(model.model)
    device, dtype = compute.placed
    if model.teacher is not None and compute.runtime != "torch":
        raise UserError("--teacher needs the projectors, which are in no ONNX file; leave --runtime out")
    checks.first_photo(paths)

    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks import encode as task

    run = Run()
    with run.stage("load"):
        encoder, number_type = compute.apply(load_encoder(model.model, device, dtype), "encoder", run)
    task.check_teacher(encoder, model.teacher)
    console.note(f"{encoder.source.name}, licence of the weights: {encoder.source.licence}")

    def read() -> Iterator[Photo]:
        for path in console.progress(paths, "encode", unit="photo"):
            with run.stage("read"):
                photo = read_photo(path)
            yield photo

    documents = []
    results = task.encode(encoder, read(), task.InputFit(model.size, model.fit), model.teacher, model.batch_size, run)
    for features, target in zip(results, files):
        with run.stage("write"):
            task.write(features, target)
        provenance = run.provenance([encoder.source], [(features.path, features.sha256)], **number_type)
        documents.append(task.document(features, target, provenance))
        if preview:
            from dune_cli import previews

            shown = previews.save(previews.picture(features), sibling(target, PREVIEW))
            documents[-1]["preview"] = shown
        write_json(target.with_suffix(".json"), documents[-1])
        output.print_lines(target)
    output.print_json(documents)


@dataclass(frozen=True)
class EncodeShards:
    """Features in shards: a Parquet row for each photo."""

    model: str
    teacher: str | None
    size: int | None
    fit: str
    batch_size: int
    dtype: str
    tokens: tuple[str, ...]

    name = "encode"
    kind = "parquet"

    @classmethod
    def of(cls, model: EncoderOptions, compute: ComputeOptions, shards: FeatureShardOptions) -> EncodeShards:
        """UserError or WeightsMissing for a model that is not here."""
        (stored,) = stored_weights(model.model)
        assert stored is not None
        tokens = shards.kept_tokens()
        return cls(stored, model.teacher, model.size, model.fit, model.batch_size, compute.dtype, tokens)

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str) -> EncoderShardNetwork:
        from dune_cli.checkpoints.loader import load_encoder
        from dune_cli.tasks import encode

        encoder = load_encoder(self.model, device=device, dtype=self.dtype)
        encode.check_teacher(encoder, self.teacher)
        return EncoderShardNetwork(encoder, encode.InputFit(self.size, self.fit), self)


class EncoderShardNetwork:
    """An encoder as shards use it."""

    keeps_pixels = False

    def __init__(self, encoder: Any, fit: Any, verb: EncodeShards) -> None:
        self.encoder, self.fit, self.verb, self.run = encoder, fit, verb, Run()
        self.sources = [encoder.source]

    @property
    def columns(self) -> list[Column]:
        """Tokens in C order; their last side is `channels`, the patches' first two are `grid_height`, `grid_width`."""
        from dune_cli.io.shards.files import Column

        numbers = ("network_width", "network_height", "grid_height", "grid_width", "channels")
        return [
            *(Column(name, "int32") for name in numbers),
            Column("network_from_image", "list:float64"),
            *(Column(name, "list:float32") for name in self.verb.tokens),
        ]

    def prepare(self, photo: Photo) -> tuple[Hashable, tuple[PhotoInfo, Prepared]]:
        prepared = self.fit.prepared(photo.rgb, self.encoder)
        return prepared.image.shape, (photo.info, prepared)

    def predict(self, inputs: Sequence[tuple[PhotoInfo, Prepared]]) -> list[EncoderFeatures]:
        from dune_cli.tasks import encode

        return list(encode.forward(self.encoder, inputs, self.verb.teacher, self.run))

    def finish(self, photo: PhotoInfo, features: EncoderFeatures) -> PhotoResult:
        from dune_cli.tasks.large_folders.pipeline import PhotoResult

        h, w, channels = features.patches.shape
        return PhotoResult(
            {
                "network_width": w * features.patch,
                "network_height": h * features.patch,
                "grid_height": h,
                "grid_width": w,
                "channels": channels,
                "network_from_image": features.network_from_image,
                **{name: getattr(features, name) for name in self.verb.tokens},
            }
        )


class FeaturesTask(PredictTask):
    """The features of `dune predict`."""

    name = "features"
    file = "features.npz"
    with_camera = False

    def __init__(self, settings: TaskSettings) -> None:
        self.model, self.compute = settings.model or settings.encoder or DEFAULT_MODEL, settings.compute
        checks.weights(settings.model, settings.encoder)

    def load(self) -> None:
        from dune_cli.checkpoints.loader import load_encoder

        self.encoder = load_encoder(self.model, self.compute.device, self.compute.dtype)
        self.sources = [self.encoder.source]

    def slot(self) -> SharedBackboneSlot | None:
        from dune_cli.models.distilled_encoder import DistilledEncoder
        from dune_cli.models.shared_backbone import SharedBackboneSlot
        from dune_cli.models.vit import VisionTransformer

        if isinstance(self.encoder, DistilledEncoder):
            return SharedBackboneSlot(self.name, self.encoder, "vit")
        if isinstance(self.encoder, VisionTransformer):
            return SharedBackboneSlot(self.name, self, "encoder")
        return None

    @property
    def fit(self) -> str:
        """--fit of the verb."""
        return "stretch" if self.whole else "crop"

    def verb_options(self) -> dict[str, Any]:
        return {"--fit": self.fit}

    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        from dune_cli.tasks import encode

        (features,) = encode.encode(self.encoder, [photo], encode.InputFit(size, self.fit), run=run)
        encode.write(features, path)
        self.pictured = (features,)
        return encode.document(features, path, {})
