"""What `dune weights info`, `verify` and `convert` do: describe a file, check hashes, write our own safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dune_cli import __version__
from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.registry import Entry
from dune_cli.checkpoints.weights_folder import LocatedFile
from dune_cli.errors import CheckpointError
from dune_cli.provenance import sha256_of


@dataclass(frozen=True)
class HashCheck:
    """A file's hash and its `status`: "ok", "changed", "pinned" (just now) or "unknown" (nothing to compare with)."""

    path: Path
    name: str
    sha256: str
    status: str
    detail: str


def describe_entry(entry: Entry) -> dict[str, Any]:
    """What the registry and this machine say about a published file, for JSON."""
    facts = asdict(entry)
    located = weights_folder.find_present(entry)
    part = weights_folder.weights_folder() / f"{entry.file}.part"
    facts["urls"] = list(entry.urls)
    facts["needs"] = list(entry.needs)
    facts["present"] = located is not None
    facts["path"] = str(located.path) if located is not None else None
    facts["origin"] = located.origin if located is not None else None
    facts["partial_bytes"] = part.stat().st_size if part.is_file() else 0
    facts["trust"] = trust(entry)
    return facts


def trust(entry: Entry) -> str:
    """What a published file is held against: "registry" (its hash is there), "pinned" here, or "first use"."""
    if entry.sha256 is not None:
        return "registry"
    return "pinned" if entry.file in weights_folder.read_pins(weights_folder.weights_folder()) else "first use"


def describe_file(located: LocatedFile) -> dict[str, Any]:
    """What a weight file is, for JSON: format, size, hash, whether that is the pinned one, licence, layout, shape.

    Also for a file that no layout fits. Raises CheckpointError for one that cannot be opened or contradicts its layout.
    """
    from dune_cli.checkpoints import weight_files

    # before adapters, whose import takes seconds: a wrong file is refused at once
    file = weight_files.read_located(located, remember=False)
    from dune_cli.checkpoints import adapters

    try:
        description = adapters.describe(file.checkpoint, file.metadata, file.surroundings)
    except CheckpointError as error:
        raise CheckpointError(f"{located.path}: {error}") from error
    verdict = _compare(located, file.sha256, remember=False)
    entry = located.entry
    facts = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(description).items()}
    if entry is not None and description.kind == "unknown":
        facts["kind"] = entry.kind
    return {
        "path": str(located.path),
        "format": file.format,
        "size_bytes": located.path.stat().st_size,
        "sha256": file.sha256,
        "sha256_status": verdict.status,
        "sha256_detail": verdict.detail,
        "name": entry.name if entry is not None else None,
        "summary": entry.summary if entry is not None else None,
        "licence": file.licence,
        "licence_url": entry.licence_url if entry is not None else None,
        "metadata": file.metadata,
        **facts,
    }


def convert(located: LocatedFile, target: Path) -> None:
    """Writes the file as safetensors with official key names; layout, licence and origin go into the header.

    Raises CheckpointError for an unknown layout.
    """
    from dune_cli.checkpoints import adapters, weight_files

    file = weight_files.read_located(located)
    try:
        tensors, header = adapters.to_safetensors(file.checkpoint, file.metadata, file.surroundings)
    except CheckpointError as error:
        raise CheckpointError(f"{located.path}: {error}") from error
    header |= {
        "dune.licence": file.licence,
        "dune.source": located.entry.name if located.entry is not None else located.path.name,
        "dune.source_sha256": file.sha256,
        "dune.version": __version__,
    }
    weight_files.write_safetensors(target, tensors, header)


def verify(names: Sequence[str]) -> Iterator[HashCheck]:
    """Hashes files, compares with the registry's hash or the first one seen, and remembers one not seen before.

    Without names: every published file that is here and every other file that was pinned in the weights folder.
    """
    for located in [weights_folder.locate(name) for name in names] if names else _everything():
        yield _compare(located, sha256_of(located.path), remember=True)


def _everything() -> list[LocatedFile]:
    found = [located for entry in registry.all_entries() if (located := weights_folder.find_present(entry)) is not None]
    home, seen = weights_folder.weights_folder(), {located.path for located in found}
    pinned = [home / name for name in weights_folder.read_pins(home)]
    return found + [LocatedFile(path, None, "weights folder") for path in pinned if path.is_file() and path not in seen]


def _compare(located: LocatedFile, sha256: str, remember: bool) -> HashCheck:
    path, home = located.path, weights_folder.weights_folder()
    name = located.entry.name if located.entry is not None else path.name
    expected = weights_folder.expected_sha256(located)
    if expected is not None:
        same = sha256 == expected[0]
        detail = f"{'as' if same else 'not as'} {expected[1]} says" + ("" if same else f": {expected[0]}")
        return HashCheck(path, name, sha256, "ok" if same else "changed", detail)
    if path.parent.resolve() != home.resolve():
        return HashCheck(path, name, sha256, "unknown", "no hash is known, and only the weights folder remembers them")
    if not os.access(home, os.W_OK):
        return HashCheck(path, name, sha256, "unknown", f"no hash is known, and {home} is not writable to remember it")
    if not remember:
        return HashCheck(
            path, name, sha256, "unknown", "no hash is known yet; 'dune weights verify' remembers this one"
        )
    pin = weights_folder.pin(home, path.name, sha256, path.stat().st_size, "found in the weights folder")
    return HashCheck(path, name, sha256, "pinned", f"the first one seen, remembered on {pin.pinned}")
