"""The options that all commands share, so that the same word means the same thing everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from dune_cli import console, runtime

F = TypeVar("F", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A finite number in a range: for click "nan" is in every one, and "inf" in those without an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    console.set_quiet(value)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.find_root().meta["dune.debug"] = value


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    runtime.check_device(value)
    return value


def _apply(function: F, options: list[Callable[[F], F]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def common(function: F) -> F:
    """`--quiet` and `--debug`, which every command takes; they reach no parameter of the function."""
    return _apply(
        function,
        [
            click.option(
                "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="No notes, no progress."
            ),
            click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."),
        ],
    )


def compute(function: F) -> F:
    """`device`, `dtype`."""
    return _apply(
        function,
        [
            click.option(
                "--device", default="auto", show_default=True, callback=_device, help=" | ".join(runtime.DEVICES)
            ),
            click.option(
                "--dtype",
                default="auto",
                show_default=True,
                type=click.Choice(runtime.DTYPES),
                help="Matrix products of transformer trunks; auto: bfloat16 where the processor is fast at it.",
            ),
        ],
    )


def cameras(function: F) -> F:
    """`intrinsics`, `fov_deg`."""
    return _apply(
        function,
        [
            click.option(
                "--intrinsics",
                metavar="FILE|FX,FY,CX,CY",
                help="In original pixels: numbers for all images, several separated by ';', or a JSON file "
                '{"image name": 3x3}. Without it: --fov-deg, else the EXIF focal length, else a guess.',
            ),
            click.option(
                "--fov-deg",
                type=FiniteRange(1, 170),
                help="Field of view across the long side, in degrees; goes before EXIF.  [guess without any: 55]",
            ),
        ],
    )


def output(required: bool, text: str) -> Callable[[F], F]:
    """`output`, `overwrite`: `text` says which file endings are allowed."""

    def decorate(function: F) -> F:
        return _apply(
            function,
            [
                click.option("-o", "--output", required=required, metavar="PATH", help=text),
                click.option("--overwrite", is_flag=True, help="Replace existing output files."),
            ],
        )

    return decorate


def listed(text: str) -> list[str]:
    """The parts of a list with commas, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """The callback of an option that takes such a list; without a value an empty one."""
    return listed(value or "")


def as_json(function: F) -> F:
    """`as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
        function
    )


def seed(function: F) -> F:
    """`seed`."""
    return click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")(function)


def fps(function: F) -> F:
    """`fps`: frames a second of videos, or None for all."""
    return fps_as("Of a video, only the frames nearest to N times a second.  [default: all frames]")(function)


def fps_as(text: str) -> Callable[[F], F]:
    """`fps` where it means something of its own, as `text` says."""
    return click.option("--fps", type=FiniteRange(0, min_open=True), metavar="N", help=text)


def size(function: F) -> F:
    """`size`: long side in pixels, or None for the model's own."""
    return click.option(
        "--size", type=click.IntRange(14), metavar="PX", help="Long side of the network input, in pixels."
    )(function)


# Long `--help` pages: options under headings. An option is filed by its name, for a word means the same everywhere.


HEADINGS = {
    "Input": "fps map_folder images ref_depths depth_scale teachers data photos labelled pairs_root sets split "
    "submission limit validate held_out_fraction select which tasks names labels",
    "Model": "model models encoder student init body_models context flip depth_range scales teacher min_score",
    "Cameras": "intrinsics fov_deg baseline poses pose_use scale",
    "Matching": "method matcher matchers pairs neighbours retrieval retrieval_model top_k mapper solver min_confidence "
    "unit_translation threshold_px sizes_px",
    "Training": "steps accumulate learning_rate sharing drop_probability projector norm photometric "
    "cache crops keypoints max_keypoints warped_share prune_below validation_pairs teacher_minutes",
    "Dense": "dense quality qualities mesh",
    "Output": "output overwrite kind colormap overlay top_view colmap colmap_format transforms depths as_json top",
    "Advanced": "",
}
_FILED = {name: heading for heading, names in HEADINGS.items() for name in names.split()}


class GroupedCommand(click.Command):
    """`headings`: parameter name -> heading, where a name is used otherwise than elsewhere."""

    def __init__(self, *arguments: Any, headings: Mapping[str, str] | None = None, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.headings = dict(headings or {})

    def heading_of(self, param: click.Parameter) -> str:
        """Of HEADINGS; what is filed nowhere is advanced."""
        name = param.name or ""
        return self.headings.get(name) or _FILED.get(name, "Advanced")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows[self.heading_of(param)].append(record)
        width = max(len(first) for records in rows.values() for first, _ in records)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=min(width + 2, 30))
