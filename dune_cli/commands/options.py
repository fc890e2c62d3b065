"""Command-line options, each declared once: name, metavar, help, unit, type and default.

A group is a frozen dataclass of options. `verb` makes a function a command by its signature: a parameter whose type is
a group adds the options of that group and gets one instance of it. A parameter may also be an option or an argument.

    @group("Input")
    class VideoOptions:
        fps: float | None = option("--fps N", "Frames per second to take from a video.", POSITIVE_NUMBER)

    @verb()
    def command(*, photos: tuple[str, ...] = PHOTOS, video: VideoOptions, flip: bool = option("--flip", "...")) -> None:
        ...

A group may inherit from another and redeclare a field. The default of a group's parameter may do so for one verb:
`output: OutputOptions = adapt(output=output_to("a .json file."))`.
"""

from __future__ import annotations

import difflib
import functools
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dune_cli import console, plugins, runtime
from dune_cli.commands.choices import NearChoice, WholeNumber
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from dune_cli.io.intrinsics import PhotoCamera

T = TypeVar("T")
# in the order of --help
HEADINGS = (
    "Input",
    "Model",
    "Cameras",
    "World",
    "Matching",
    "Training",
    "Dense",
    "People",
    "Output",
    "Shards",
    "Advanced",
)


class FiniteRange(click.FloatRange):
    """A finite number in a range. Click's own range accepts "nan", and "inf" where it has no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class NameList(click.ParamType):
    """A comma-separated list, as a tuple of its parts in their order. `distinct`: each once."""

    name = "list"

    def __init__(self, distinct: bool = True) -> None:
        self.distinct = distinct

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        parts = [part.strip() for part in (value.split(",") if isinstance(value, str) else value) if part.strip()]
        return tuple(dict.fromkeys(parts) if self.distinct else parts)


class PixelList(NameList):
    """Such a list of whole pixels, of at least `least`. `zero`: what 0 means, where it is allowed."""

    def __init__(self, least: int, zero: str = "", example: str = "") -> None:
        super().__init__()
        self.least, self.zero, self.example = least, zero, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = super().convert(value, param, ctx)
        allowed = (part.isdigit() and (int(part) >= self.least or (self.zero and not int(part))) for part in parts)
        if not parts or not all(allowed):
            zero = f", or 0 for {self.zero}" if self.zero else ""
            self.fail(f"{value!r}: whole pixels from {self.least} on{zero}, such as {self.example}", param, ctx)
        return tuple(map(int, parts))


LARGEST_INPUT_PX = 16_384
COUNT = WholeNumber(1)
SEED = WholeNumber(0)  # COLMAP takes 31 bits
HEIGHT_M = FiniteRange(0.5, 2.3)  # standing, of people
FRACTION = FiniteRange(0, 1)
NOT_NEGATIVE = FiniteRange(0)
POSITIVE_NUMBER = FiniteRange(0, min_open=True)


def completions(metavar: str | None, incomplete: str) -> list[CompletionItem]:
    """What a shell proposes for the value of an option or argument without a list of its own: names of models, and
    files or folders, which the shell lists."""
    from click.shell_completion import CompletionItem

    kinds = set((metavar or "").removesuffix("...").removesuffix(",").split("|"))
    found = []
    if {"NAME", "FILE"} <= kinds:
        from dune_cli.checkpoints import registry

        found = [CompletionItem(e.name) for e in registry.all_entries() if e.name.startswith(incomplete)]
    if kinds & {"FILE", "PATH", "PHOTO", "IMAGE", "PAGE", "DATA", "RESULT", "QUERY", "REFERENCE", "INPUT"}:
        found.append(CompletionItem(incomplete, type="file"))
    elif kinds & {"DIR", "ROOT"}:
        found.append(CompletionItem(incomplete, type="dir"))
    return found


class Option(click.Option):
    """As Click's. `aliases`: old spellings, which work and are not shown; `default_text`: the default in words."""

    def __init__(
        self, *arguments: Any, heading: str, aliases: Sequence[str], default_text: str | None, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self.heading, self.aliases, self.default_text = heading, tuple(aliases), default_text

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown, self.opts = self.opts, [*self.opts, *self.aliases]
        super().add_to_parser(parser, ctx)
        self.opts = shown

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return super().shell_complete(ctx, incomplete) or completions(self.metavar, incomplete)

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        return extra if self.default_text is None else extra | {"default": self.default_text}


class Argument(click.Argument):
    """As Click's, with a help text in every version of Click."""

    heading = "Input"

    def __init__(self, *arguments: Any, help: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help = help

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return super().shell_complete(ctx, incomplete) or completions(self.metavar, incomplete)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.human_readable_name, self.help


class Command(click.Command):
    """Lists its options by headings. Their defaults may come from files (configured.py)."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        from dune_cli.commands import configured

        if extra.get("resilient_parsing"):  # completion
            return super().make_context(info_name, args, parent, **extra)
        found = configured.defaults(self, configured.words_of(info_name, parent), args, parent)
        ctx = super().make_context(info_name, args, parent, **({"default_map": found.by_parameter} | extra))
        found.tell(ctx)
        return ctx

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """They are among the options, under "Input"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows[getattr(param, "heading", "Advanced")].append(record)
        width = max(len(first) for records in rows.values() for first, _ in records)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=min(width + 2, 30))


class FolderGroup(click.Group):
    """The commands in the folder of a package: each file (or folder) defines `command`.

    A command's module is imported only when it runs or shows its own help. Its short help is the first line of the
    docstring of `command`, which is read from the file.
    """

    def __init__(self, *arguments: Any, package: str, heading: str = "Commands", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.package, self.heading = package, heading

    def list_commands(self, ctx: click.Context) -> list[str]:
        return plugins.names(self.package, "command")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = cmd_name in self.list_commands(ctx)
        return plugins.load(self.package, cmd_name).command if known else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click's, whose suggestions know no command that is not imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            error.message += f" Did you mean {near[0]!r}?" if near else ""
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, plugins.summary(self.package, name, "command")) for name in self.list_commands(ctx)]
        with formatter.section(self.heading):
            formatter.write_dl(rows)


def option(
    declaration: str,
    help: str,
    type: Any = None,
    default: Any = None,
    *,
    heading: str | None = None,
    aliases: Sequence[str] = (),
    default_text: str | None = None,
    **settings: Any,
) -> Any:
    """An option, as a dataclass field. `declaration` as --help shows it: "-o, --output PATH", "--dense/--no-dense",
    "--mapper [incremental|global]". Without a metavar and a type it is a flag.

    `heading` is that of its group if it is None; see `Option` for `aliases` and `default_text`. `settings`: others of
    Click's. The field's default is the option's; of several values it is ().
    """
    words = [word.removesuffix(",") for word in declaration.split(" ")]
    names = [word for word in words if word.startswith("-")]
    metavar = next((word for word in words if not word.startswith("-")), None)
    if metavar is not None and metavar.startswith("[") and metavar.endswith("]"):
        type, metavar = NearChoice(metavar[1:-1].split("|")), None
    settings |= {"help": help, "type": type, "metavar": metavar, "show_default": True}
    if not settings.get("required"):
        if metavar is None and type is None and default is None:
            settings["is_flag"], default = True, False
        several = settings.get("multiple") or isinstance(type, NameList)
        settings["default"] = default = () if several and default is None else default
    spec = {"heading": heading, "aliases": tuple(aliases), "default_text": default_text, **settings}
    return field(
        **{} if settings.get("required") else {"default": default}, metadata={"names": names, "settings": spec}
    )


def argument(metavar: str, help: str, **settings: Any) -> Any:
    """A positional argument, as a dataclass field."""
    return field(metadata={"argument": {"metavar": metavar, "help": help, **settings}})


def changed(kind: type, name: str, **settings: Any) -> Any:
    """The field `name` of a group with other settings, such as another default."""
    one = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
    required = settings.get("required", one.metadata["settings"].get("required"))
    spec = one.metadata["settings"] | settings
    return field(
        **{} if required else {"default": spec.get("default")},
        metadata={"names": one.metadata["names"], "settings": spec},
    )


def adapt(**redeclared: Any) -> Any:
    """As the default of a parameter whose type is a group: fields of the group that this verb declares otherwise."""
    return redeclared


def group(heading: str) -> Callable[[type[T]], type[T]]:
    """Makes a class of options a frozen dataclass. `heading`: of --help, for options that name none themselves."""

    def decorate(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, kw_only=True)(cls)
        for one in fields(made):  # type: ignore[arg-type]
            one.metadata["settings"]["heading"] = one.metadata["settings"]["heading"] or heading
        return made

    return decorate


def verb(
    name: str = "command", parent: click.Group | None = None, **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a command, of `parent` if that is given. Its parameters are groups, options and arguments.

    `--quiet`, `--profile` and `--debug` are added, which reach no parameter. TypeError where two options have one name.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        params, groups = [], {}
        for key, kind in typing.get_type_hints(function).items():
            default = (function.__kwdefaults__ or {}).get(key)
            if is_dataclass(kind):
                groups[key] = kind
                for one in fields(kind):
                    here = (default or {}).get(one.name, one)
                    here.metadata["settings"]["heading"] = here.metadata["settings"]["heading"] or _heading(one)
                    params.append(_parameter(one.name, here))
            elif isinstance(default, Field):
                params.append(_parameter(key, default))

        @functools.wraps(function)
        def run(**given: Any) -> Any:
            for key, kind in groups.items():
                given[key] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
            return function(**given)

        names = [param.name for param in params]
        if len(set(names)) < len(names):
            raise TypeError(f"{function.__module__} has two options of one name among {', '.join(map(str, names))}")
        common = [_parameter(None, one) for one in (_QUIET, _PROFILE, _DEBUG)]
        made = click.command(name, cls=Command, params=[*params, *common], **settings)(run)
        if parent is not None:
            parent.add_command(made)
        return made

    return decorate


def _heading(one: Any) -> str:
    return one.metadata["settings"]["heading"] or "Advanced"


def _parameter(name: str | None, one: Any) -> click.Parameter:
    if "argument" in one.metadata:
        return Argument([name], **one.metadata["argument"])
    spec = one.metadata["settings"] | {"heading": _heading(one)}
    return Option([*one.metadata["names"], *([] if name is None else [name])], **spec)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.find_root().meta["dune.debug"] = value


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    console.set_quiet(value)


def _set_profile(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    from dune_cli.commands import _profile

    _profile.start(ctx, value)


def _checked_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    runtime.check_device(value)
    return value


_QUIET = option("--quiet", "Print no notes and no progress.", expose_value=False, callback=_set_quiet)
_PROFILE = option(
    "--profile", "Print what the stages take, on standard error.", expose_value=False, callback=_set_profile
)
_DEBUG = option("--debug", "Print the traceback of an error.", expose_value=False, callback=_set_debug)


def values(*groups: Any) -> dict[str, Any]:
    """The fields of several groups in one dictionary."""
    return {one.name: getattr(given, one.name) for given in groups for one in fields(given)}


# The options that verbs share, and functions that redeclare one with what differs between verbs.

PHOTOS = argument("PHOTO...", "Photos, folders of photos, or globs in quotes.", nargs=-1, required=True)
PHOTOS_AND_VIDEOS = argument("PHOTO...", "Photos, videos, folders, or globs in quotes.", nargs=-1, required=True)
BEST_MODEL = "the best one on this machine"


def model_of(kinds: str, **settings: Any) -> Any:
    """--model. `kinds`: the kinds of models that the verb takes."""
    text = f"Model: a name of 'dune weights list', a weight file, or hf://OWNER/NAME/FILE. Takes {kinds}."
    return option("--model NAME|FILE", text, **settings)


def output_to(formats: str, **settings: Any) -> Any:
    """--output. `formats`: what is written, and the file endings."""
    return option("-o, --output PATH", f"Output: {formats}", **settings)


def file_format(formats: Sequence[str]) -> Any:
    """--format, of files in an output folder; the first one is the default."""
    text = "Format of the files in an output folder."
    return option(f"--format [{'|'.join(formats)}]", text, default_text=formats[0], heading="Output")


def size_px(what: str = "Long side of the network input", least: int = 14, **settings: Any) -> Any:
    """--size."""
    return option("--size PX", f"{what}, in pixels.", WholeNumber(least, LARGEST_INPUT_PX), heading="Model", **settings)


def fps(what: str, default_text: str) -> Any:
    """--fps."""
    return option("--fps N", what, POSITIVE_NUMBER, default_text=default_text, heading="Input")


class Printer:
    """Of a group with `as_json`: how a verb prints its results."""

    as_json: bool

    def print_lines(self, *lines: object) -> None:
        """Prints results, such as paths, unless JSON was asked for."""
        if not self.as_json:
            console.result(*lines)

    def print_json(self, documents: Sequence[dict[str, Any]]) -> None:
        """Prints the documents if JSON was asked for: one as an object, several as a list."""
        from dune_cli.io.json_files import dumps

        if self.as_json:
            console.document(dumps(documents[0] if len(documents) == 1 else documents))


@group("Output")
class JsonOptions(Printer):
    as_json: bool = option("--json", "Print the result as JSON on standard output.")


@group("Output")
class OutputOptions(Printer):
    output: str | None = output_to("a file.")
    overwrite: bool = option("--overwrite", "Replace existing output files.")
    as_json: bool = changed(JsonOptions, "as_json")

    def file(self, *suffixes: str) -> Path | None:
        """The output file, if one is named. UserError unless it ends in one of `suffixes` and can be written."""
        from dune_cli.io.outputs import check_output

        return None if self.output is None else check_output(self.output, suffixes, self.overwrite)


@group("Advanced")
class ComputeOptions:
    device: str = option(
        "--device DEVICE",
        "Device of the networks: auto, cpu, cuda, cuda:N or mps. auto: the first available of cuda, mps and cpu.",
        default="auto",
        callback=_checked_device,
        envvar="DUNE_DEVICE",
    )
    dtype: str = option(
        f"--dtype [{'|'.join(runtime.DTYPES)}]",
        "Number type of matrix products in transformers. auto: float32 for two-view and multi-view models, else a "
        "16-bit type where the device is fast at it.",
        default="auto",
        envvar="DUNE_DTYPE",
    )


@group("Advanced")
class SeededOptions(ComputeOptions):
    seed: int = option("--seed N", "Seed of all random choices.", SEED, 0)


@group("People")
class ScenePeopleOptions:
    people: bool = option(
        "--people",
        "Find the people in the photos and place their bodies in the scene. A scene of unknown scale gets metres by "
        "their heights.",
    )
    height: float | None = option(
        "--height METRES",
        "Standing height of the people, in metres.",
        HEIGHT_M,
        default_text="adults of 1.70, deviation 0.09",
    )

    def check(self) -> None:
        """UserError for a height of nobody."""
        if self.height is not None and not self.people:
            raise UserError(f"--height {self.height:g} is that of the people of --people; give both, or leave it out")


@group("Cameras")
class CameraOptions:
    intrinsics: str | None = option(
        "--intrinsics FILE|FX,FY,CX,CY",
        "Cameras, in pixels of the original photo: four numbers, or a COLMAP camera such as "
        "OPENCV,WIDTH,HEIGHT,PARAMS, for all photos, or one for each separated by ';'; a JSON file {\"image name\": "
        "3x3 matrix}; cameras.txt, a COLMAP model, transforms.json, or a calibration of OpenCV or Kalibr. "
        "EQUIRECTANGULAR: photos twice as wide as high are panoramas of the whole sphere.",
        default_text="from --fov-deg",
    )
    fov_deg: float | None = option(
        "--fov-deg DEG",
        "Field of view across the long side, in degrees. Overrides EXIF.",
        FiniteRange(1, 170),
        default_text="from EXIF, else 55",
    )

    def resolve_cameras(self, photos: Any, entries: Any = None, panoramas: bool = False) -> list[PhotoCamera]:
        """The camera of each photo; `entries` and `panoramas` as in `io.intrinsics.resolve_cameras`. UserError as
        `resolve`."""
        from dune_cli.io.intrinsics import resolve_cameras

        return resolve_cameras(photos, self.intrinsics, self.fov_deg, entries, panoramas)

    def one_by_one(self, count: int) -> list[CameraOptions]:
        """The options for each of `count` photos that are read one after the other."""
        from dune_cli.io.intrinsics import one_by_one

        return [CameraOptions(intrinsics=one, fov_deg=self.fov_deg) for one in one_by_one(self.intrinsics, count)]


@group("Cameras")
class BaselineCameras(CameraOptions):
    baseline: float | None = option(
        "--baseline METRES",
        "True distance between the first two cameras, in metres. Sets the scale.",
        POSITIVE_NUMBER,
    )


@group("Model")
class ModelOptions:
    model: str | None = model_of("two-view models (MASt3R, DUNE + MASt3R)")
    encoder: str | None = option(
        "--encoder NAME|FILE", "Encoder of a model whose weight file has none.", default_text="by the model's name"
    )

    def choose(self, verb: str) -> str:
        """The model, or the best one of the verb that is on this machine. WeightsMissing or UserError where it cannot
        run; without any the message says what to pull."""
        from dune_cli.checkpoints import registry, weights_folder
        from dune_cli.checkpoints.default_models import MODELS
        from dune_cli.commands.checks import weights

        chosen = self.model or weights_folder.default_model(MODELS[verb])
        weights(chosen, self.encoder)
        entry = registry.find(chosen)
        if entry is not None and entry.kind == "head" and self.encoder is None:
            for needed in registry.with_needs([entry]):
                if weights_folder.find_present(needed) is None:
                    raise weights_folder.missing(needed)
        return chosen


@group("Input")
class VideoOptions:
    fps: float | None = fps("Frames per second to take from a video.", "all frames")

    def check(self, paths: Sequence[Path]) -> None:
        """UserError for --fps without a video."""
        from dune_cli.io.inputs import is_video

        if self.fps is not None and not any(map(is_video, paths)):
            raise UserError("--fps thins out the frames of videos, and no video was named; leave it out")


@group("Training")
class TrainingOptions:
    """What distillation and head training share. Each verb has its own defaults."""

    steps: int = option("--steps N", "Number of training steps.", COUNT, 1000)
    learning_rate: float = option("--lr X", "Peak learning rate.", float, 1e-4)
    held_out_fraction: float = option(
        "--held-out X",
        "Fraction of the data to hold out for the scores of the report.",
        FiniteRange(0, 0.9),
        0.15,
        heading="Input",
    )
    checkpoint_minutes: float = option(
        "--checkpoint-minutes MINUTES", "Minutes between checkpoints.", NOT_NEGATIVE, 10.0, heading="Advanced"
    )
    log_every: int = option("--log-every N", "Steps between lines of the log.", COUNT, 10, heading="Advanced")


def init_from(default_text: str) -> Any:
    """--init, of a training."""
    return option("--init NAME|FILE", "Weights to start from.", heading="Model", default_text=default_text)
