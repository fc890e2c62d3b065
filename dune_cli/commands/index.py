"""`dune index`: photos and videos to an index for `dune search`."""

from __future__ import annotations

from typing import Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import ComputeOptions, JsonOptions, VideoOptions, option
from dune_cli.provenance import Run

NEEDS = ("numpy", "torch", "PIL", "safetensors")
DEFAULT_MODEL = "dune-mini"
POOLINGS = ("cls", "mean", "gem")


@options.group("Model")
class DescriptorOptions:
    """Those of --model, --pooling and --size that are None are the index's, or the defaults of a new one."""

    model: str | None = options.model_of(
        "encoders, also timm:NAME and timm:NAME=FILE", default_text=f"that of the index, else {DEFAULT_MODEL}"
    )
    pooling: str | None = option(
        f"--pooling [{'|'.join(POOLINGS)}]",
        "Vector of a photo: the CLS token, the mean of the patch tokens, or their generalised mean.",
        default_text="that of the index, else cls",
    )
    size: int | None = options.size_px(default_text="that of the index, else 224")
    batch_size: int = option(
        "--batch-size N", "Number of photos or frames per forward pass.", options.COUNT, 1, heading="Advanced"
    )


@options.group("Input")
class FrameOptions(VideoOptions):
    fps: float | None = options.fps("Frames per second to take from a video.", "1")


@options.group("Output")
class IndexOutput(JsonOptions):
    output: str = option("-o, --output DIR", "Output folder of the index. An existing index is renewed.", required=True)
    keep: bool = option("--keep", "Keep files of the index that are not among the inputs.")
    overwrite: bool = option(
        "--overwrite",
        "Replace an index that another encoder made, that is damaged, or that has none of the inputs.",
    )


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS_AND_VIDEOS,
    video: FrameOptions,
    model: DescriptorOptions,
    compute: ComputeOptions,
    output: IndexOutput,
) -> None:
    """Index photos and videos, for dune search.

    Computes one vector of unit length for each photo and video frame. The folder holds index.json (the encoder, its
    licence, counts), the vectors (NPY, float32) and the list of photos (JSON Lines). Paths are relative to the folder.

    Run again, only new and changed files are encoded. The index then holds the named files and no others: files that
    are gone or not named are dropped, unless --keep is given. A run that was stopped goes on. Files that cannot be read
    are left out with a note, and counted in the JSON.

    \b
    Example: dune index photos/ -o index/
             dune search query.jpg --index index/ --top 10
             dune index photos/ 'holidays/**/*.jpg' clip.mp4 --fps 0.5 -o index/ --json
             dune index photos/ --model dinov2-vits14 --pooling mean -o index-dinov2/
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.photo_index import check_index_folder, is_index, open_index

    paths = expand(photos, videos=True)
    video.check(paths)
    folder = check_index_folder(output.output)
    known = None if output.overwrite or not is_index(folder) else open_index(folder).encoder
    chosen = model.model or (known.model if known else DEFAULT_MODEL)
    checks.weights(chosen)

    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.sfm.global_descriptors import DEFAULT_POOLING, DEFAULT_SIZE_PX, DescriptorSettings, GlobalDescriptor
    from dune_cli.tasks import index as task

    pooling = model.pooling or (known.pooling if known else DEFAULT_POOLING)
    size_px = model.size or (known.size_px if known else DEFAULT_SIZE_PX)
    run = Run()
    with run.stage("load"):
        encoder = load_encoder(chosen, compute.device, compute.dtype)
    console.note(f"{encoder.source.name}, licence of the weights: {encoder.source.licence}")
    descriptor = GlobalDescriptor(encoder, checks.stored_name(chosen), DescriptorSettings(pooling, size_px))
    settings = task.IndexSettings(model.batch_size, video.fps or task.DEFAULT_FPS, output.keep, output.overwrite)
    result = task.update(folder, paths, descriptor, settings, run, dtype=compute.dtype)
    console.note(_summary(result))
    output.print_lines(folder)
    output.print_json([task.document(result)])


def _summary(result: Any) -> str:
    from dune_cli.progress import amount

    counts = {"encoded": result.encoded, "unchanged": result.unchanged, "dropped": result.dropped}
    counts["left out"] = len(result.skipped)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "encoded")
    return f"{amount(result.header['files'], 'file')}, {amount(result.header['count'], 'vector')}: {told}"
