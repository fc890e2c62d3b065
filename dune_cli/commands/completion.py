"""`dune completion`: the script that makes a shell complete dune's command line."""

from __future__ import annotations

import click

from dune_cli import console
from dune_cli.commands import options

PROGRAM, VARIABLE = "dune", "_DUNE_COMPLETE"


@options.verb()
def command(
    *, shell: str = options.argument("SHELL", "bash, zsh or fish.", type=click.Choice(["bash", "zsh", "fish"]))
) -> None:
    """Print the completion script of a shell.

    The script completes commands, options, names of models, and files. Write it to where the shell finds it, and open
    a new shell. Bash needs version 4.4 or newer and the package bash-completion; zsh needs the folder in its fpath
    before compinit.

    \b
    Example: dune completion bash > ~/.local/share/bash-completion/completions/dune
             dune completion zsh > ~/.zfunc/_dune
             dune completion fish > ~/.config/fish/completions/dune.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    # bash's own `source` starts a bash to look at its version
    console.result(ShellComplete.source(kind(root, {}, PROGRAM, VARIABLE)))
