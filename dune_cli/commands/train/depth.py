"""`dune train depth`: a depth head on the features of an encoder."""

from __future__ import annotations

from dune_cli.commands import options
from dune_cli.commands.options import SeededOptions, option
from dune_cli.commands.publishing import RunOutput
from dune_cli.commands.train import _heads
from dune_cli.commands.train._heads import HeadModelOptions, HeadTrainingOptions, TaughtOptions


@options.group("Input")
class LabelledDepthOptions(TaughtOptions):
    """The photos and their cameras."""

    teacher: str | None = options.changed(
        TaughtOptions, "teacher", help="Teacher that labels --photos: fastdepth, for rooms. Others are left out."
    )
    fov_deg: float | None = option(
        "--fov-deg DEG",
        "Field of view across the long side of photos whose camera is not known, in degrees.",
        options.FiniteRange(1, 170),
        default_text="their depth is compared up to scale",
    )


@options.verb("depth")
def command(
    *,
    data: LabelledDepthOptions,
    head: HeadModelOptions,
    training: HeadTrainingOptions,
    compute: SeededOptions,
    output: RunOutput,
) -> None:
    """Train a depth head on the features of an encoder.

    --data is a folder with an index.jsonl, or in the layout of TUM RGB-D, KITTI, or NYU (folders rgb/ and depth/, depth
    in millimetres). Features of an encoder that is not tuned are computed once. The run folder holds checkpoints and
    log.jsonl, and at the end head.safetensors, head_fp16.safetensors, report.json and report.html. The head predicts
    for a canonical camera; dune depth scales it by the focal length. The same command resumes an interrupted run, bit
    for bit.

    \b
    Example: dune train depth --data rooms/ -o depth/
             dune depth photo.jpg -o depth.png --model depth/head.safetensors
    """
    _heads.run("depth", data, head, training, compute, output)
