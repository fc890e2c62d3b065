"""The `dune` command: a Click group of the verbs in `commands/`. Only Click and the standard library are imported."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import Any

import click

from dune_cli import __version__, console, runtime, signals
from dune_cli.commands.options import FolderGroup
from dune_cli.errors import DuneError


class DuneGroup(FolderGroup):
    """The verbs, which are the files of `commands/`, with the end of the process and of its errors."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and not ctx.resilient_parsing:
            ctx.with_resource(console.heartbeat(name))
        return name, command, rest

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Without arguments, the command line of this process, which ends; with some, as click's `main`."""
        if args or options:
            return self.main(*args, **options)
        signals.guard()
        code: Any = 1
        try:
            code = self.main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:  # with --debug, or a signal before or after the verb
            if signals.received() is None:
                signals.finish(1)
                raise
        code = signals.finish(code)
        if signals.received() is not None:  # Python's own end would wait for threads
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code)
        sys.exit(code)

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        """As Click's, with the command line's control characters escaped in its errors."""
        try:
            return super().make_context(*arguments, **named)
        except click.ClickException as error:
            raise _printable(error) from None

    def invoke(self, ctx: click.Context) -> object:
        """Turns errors into one line on stderr and an exit code; a traceback only with --debug."""
        runtime.limit_threads()
        try:
            with signals.unwinding():
                return super().invoke(ctx)
        except click.ClickException as error:
            raise _printable(error) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            raise  # click leaves quietly
        except Exception as error:
            if _of_a_signal(error):
                if signals.received() not in (None, signal.SIGINT):
                    sys.exit(128 + signals.received())
                _fail("interrupted", 130)
            if ctx.meta.get("dune.debug"):
                raise
            _fail(*_sentence(error))


def _of_a_signal(error: BaseException | None) -> bool:
    """Whether an error is what became of Ctrl-C or SIGTERM: C++ code raises its own where Python's handler raised."""
    if signals.received() is not None:
        return True
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _printable(error: click.ClickException) -> click.ClickException:
    if not isinstance(error, click.exceptions.NoArgsIsHelpError):  # the text of a help, with its lines
        error.message = console.shown(error.message)
    return error


def _sentence(error: Exception) -> tuple[str, int]:
    if isinstance(error, DuneError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        hint = {
            errno.ENOSPC: "the disk is full (free some space and run the command again)",
            errno.EDQUOT: "the disk quota is used up (free some space and run the command again)",
            errno.EACCES: "permission denied",
        }.get(error.errno, error.strerror)
        return f"{hint}{where}", 1
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --size", 1
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text} (this is a bug; --debug shows where)", 1


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"{console.styled('dune:', 'bad', sys.stderr)} {console.shown(message.strip())}", err=True)
    sys.exit(exit_code)


@click.group(
    cls=DuneGroup,
    package="dune_cli.commands",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="dune")
def main() -> None:
    """One ViT encoder, many tasks: photos to features, 3-D scenes, poses, depth and people.

    Works without downloaded weights, by classical methods and bundled models. The published DUNE, MASt3R and DINOv2
    files run exactly. 'dune doctor' checks this machine, and 'dune weights list' lists the weights to fetch.

    \b
    Example: dune reconstruct photos/ -o scene.ply
             dune depth photo.jpg -o depth.png

    \b
    Exit codes: 0 done; 1 no result (no pose, full disk); 2 wrong use or input; 3 weights missing;
    4 optional package missing; 130 interrupted; 143 ended by SIGTERM.

    \b
    Environment: DUNE_WEIGHTS folder of weights; DUNE_OFFLINE=1 forbids downloads;
    DUNE_DEVICE, DUNE_DTYPE defaults of these options. 'dune config' keeps defaults in files.
    """


if __name__ == "__main__":
    main()
