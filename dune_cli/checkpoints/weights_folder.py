"""Weight files on this machine: where they lie, which hashes they had at first (lock.json), and locks."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.checkpoints import hub, registry
from dune_cli.checkpoints.default_models import DefaultModels
from dune_cli.checkpoints.registry import Entry
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.io.safe_read import MIB, quoted, read_json
from dune_cli.provenance import sha256_of

if TYPE_CHECKING:
    from dune_cli.checkpoints.hub import HubFile
    from dune_cli.io.json_files import Fields

LOCK_FILE = "lock.json"  # the first hash seen of each file
LOCK_LIMIT_BYTES = 16 * MIB
_SUFFIXES = {".pth", ".pt", ".safetensors", ".ckpt", ".bin"}


@dataclass(frozen=True)
class LocatedFile:
    """A weight file on this machine; `entry` if it is a published one; `origin` says where it was found, in words.

    `hub`: the file of the Hugging Face hub that it is, with its commit.
    """

    path: Path
    entry: Entry | None
    origin: str = "file"
    hub: HubFile | None = None


def weights_folder() -> Path:
    """`$DUNE_WEIGHTS`, else `$XDG_CACHE_HOME/dune`, else `~/.cache/dune`. It need not exist."""
    if own := os.environ.get("DUNE_WEIGHTS"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dune"


def torch_hub_folders() -> tuple[Path, Path]:
    """Where torch.hub keeps downloads: DUNE's own code in the first, DINOv2's in the second."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    checkpoints = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"
    return checkpoints / "dune", checkpoints


def is_offline() -> bool:
    """Whether DUNE_OFFLINE forbids downloads."""
    return os.environ.get("DUNE_OFFLINE", "0").lower() not in ("", "0", "false", "no")


def locate(name_or_path: str | Path) -> LocatedFile:
    """The file behind a path, a registry name, a published file name, or `hf://owner/name/file[@revision]`.

    A file of the hub is downloaded where it is not in its cache (hub.fetch, which says what that raises). Raises
    WeightsMissing (what to pull, size, licence) for published weights that are not here, UserError for what is neither
    a name nor a file (with the nearest names).
    """
    if hub.is_hub(name_or_path):
        fetched = hub.fetch(str(name_or_path))
        return LocatedFile(fetched.path, None, "Hugging Face hub", fetched.pinned)
    if not str(name_or_path):
        raise UserError("the name of a model is empty; give a weight file or a name of 'dune weights list'")
    path = Path(name_or_path).expanduser()
    if path.is_file():
        entry = registry.find_file(path.name)
        return LocatedFile(path, entry if entry is not None and _plausible(path, entry) else None)
    text = str(name_or_path)
    entry = registry.find(text) or registry.find_file(text)
    if entry is not None:
        found = find_present(entry)
        if found is None:
            raise missing(entry)
        return found
    if path.is_dir():
        raise UserError(f"{text} is a folder; a weight file or a registry name is needed")
    raise unknown(text)


def find_present(entry: Entry) -> LocatedFile | None:
    """Where a published file lies: weights folder, converted there, torch.hub's folders, an installed package."""
    return next(_candidates(entry), None)


def missing(entry: Entry) -> WeightsMissing:
    """The error for published weights that are not here: what to run, what it costs, under which licence."""
    here = f"the weights {entry.name} ({entry.file}) are not on this machine"
    if entry.bundled is not None:
        return WeightsMissing(f"{here}, though they come with dune; install dune-cli again")
    if (made := entry.script) is not None:
        return WeightsMissing(
            f"{here}; run 'python {made.script}' in a checkout of dune's sources (downloads "
            f"{registry.format_bytes(made.download_bytes)} from {made.index} and writes {entry.size} into "
            f"{weights_folder()}; licence: {entry.licence})"
        )
    size = entry.size
    if entry.package is not None:
        size += f", out of a package of {registry.format_bytes(entry.package.download_bytes)}"
    return WeightsMissing(
        f"{here}; run 'dune weights pull {entry.name}' ({size}; licence: {entry.licence}) or put the file into "
        f"{weights_folder()}"
    )


def default_model(models: DefaultModels) -> str:
    """The best of `models` that is on this machine with what it needs.

    WeightsMissing if none is. Its message says what to pull, how large that is with what it needs, and its licence.
    """
    advice = models.advice
    for name in models.candidates:
        if all(find_present(entry) for entry in _with_needs(name)):
            return name
    needed = [entry for entry in _with_needs(advice) if find_present(entry) is None]
    size = registry.format_bytes(sum(entry.size_bytes for entry in needed))
    about = "" if all(entry.size_is_exact for entry in needed) else "about "
    both = " with its encoder" if len(needed) > 1 else ""
    licences = "; ".join(dict.fromkeys(entry.licence for entry in needed))
    raise WeightsMissing(
        f"'dune {models.verb}' needs weights, and none that it can use are on this machine; run "
        f"'dune weights pull {advice}' ({about}{size}{both}; licence: {licences}), or name a file with --model"
    )


def unknown(text: str) -> UserError:
    """The error for what is neither a file nor a name, with the nearest names."""
    path = Path(text)
    names = [name for entry in registry.all_entries() for name in (entry.name, entry.file)]
    near = difflib.get_close_matches(path.name, names, 3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file" if path.suffix in _SUFFIXES or len(path.parts) > 1 else "neither a file nor a registry name"
    return UserError(f"{text}: {what}; {hint}'dune weights list' shows the names")


def expected_sha256(located: LocatedFile) -> tuple[str, str] | None:
    """The hash a file must have and who says so: the registry (which wins), or the lock file's first hash."""
    entry = located.entry
    if entry is not None and entry.sha256 is not None and located.path.name == entry.file:
        return entry.sha256, "the registry"
    if located.path.parent.resolve() != weights_folder().resolve():
        return None
    pin = read_pins(weights_folder()).get(located.path.name)
    return (pin.sha256, f"the first one seen, {pin.pinned}, in {LOCK_FILE}") if pin is not None else None


def has_hash(located: LocatedFile) -> bool:
    """Whether a file has a pinned hash, or gets one at its first use as a published file in the weights folder."""
    return expected_sha256(located) is not None or _is_pinnable(located)


def remember(located: LocatedFile, sha256: str) -> None:
    """Pins the first hash seen of a published file in the weights folder: a kill or a copy by hand left it without."""
    home = weights_folder()
    if expected_sha256(located) is None and _is_pinnable(located) and os.access(home, os.W_OK):
        path = located.path
        pin(home, path.name, sha256, path.stat().st_size, "found in the weights folder")
        console.note(f"{path.name}: trusted on first use, its sha256 {sha256} is remembered in {home / LOCK_FILE}")


def _is_pinnable(located: LocatedFile) -> bool:
    entry, path = located.entry, located.path
    return entry is not None and path.name == entry.file and path.parent.resolve() == weights_folder().resolve()


def check(located: LocatedFile, sha256: str) -> None:
    """Raises CheckpointError if a file's hash is not the one pinned for it; passes where none is pinned."""
    expected = expected_sha256(located)
    if expected is not None and sha256 != expected[0]:
        raise CheckpointError(
            f"{located.path} was changed or damaged: its sha256 is {sha256}, {expected[1]} says {expected[0]}; "
            "delete the file and fetch it again"
        )


def _with_needs(name: str) -> list[Entry]:
    """The entry of a registry name after those that it needs. KeyError for another name."""
    entry = registry.find(name)
    if entry is None:
        raise KeyError(f"{name} is not in the registry of weights")
    return registry.with_needs([entry])


def _candidates(entry: Entry) -> Iterator[LocatedFile]:
    if entry.bundled is not None:
        path = registry.folder() / entry.bundled
        if path.is_file() and _plausible(path, entry):
            yield LocatedFile(path, entry, "comes with dune")
        return
    home = weights_folder()
    places = [(home / entry.file, "weights folder"), (home / entry.converted_file, "weights folder, converted")]
    places += [(folder / entry.file, "torch hub folder") for folder in torch_hub_folders()]
    for path, origin in places:
        if path.is_file() and _plausible(path, entry):
            yield LocatedFile(path, entry, origin)
    yield from _installed(entry)


def _installed(entry: Entry) -> Iterator[LocatedFile]:
    """The member of an installed package, which is not imported; another version's counts if its hash is the pinned."""
    source = entry.package
    if source is None:
        return
    try:
        package = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        return
    path = Path(str(package.locate_file(source.member)))
    if (
        path.is_file()
        and _plausible(path, entry)
        and (package.version == source.version or sha256_of(path) == entry.sha256)
    ):
        yield LocatedFile(path, entry, f"package {source.package} {package.version}")


def _plausible(path: Path, entry: Entry) -> bool:
    """A namesake of another size is not the published file."""
    return path.name != entry.file or not entry.size_is_exact or path.stat().st_size == entry.size_bytes


@dataclass(frozen=True)
class Pin:
    """The first hash seen of a file in the weights folder, and where the file came from."""

    sha256: str
    size_bytes: int
    source: str
    pinned: str  # date, UTC


@contextmanager
def locked(folder: Path, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds `folder/.locks/name.lock` for this process; waits while another one holds it (`on_wait` is called once).

    The operating system drops the lock when its process ends, however it ends, so there are no stale locks.
    """
    from filelock import FileLock, Timeout

    path = folder / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=0.1)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if on_wait is not None:
            on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_pins(folder: Path) -> dict[str, Pin]:
    """File name to Pin. Raises CheckpointError if lock.json was damaged."""
    path = folder / LOCK_FILE
    if not os.path.lexists(path):
        return {}
    from dune_cli.io.json_files import Fields  # imports numpy, which listing and fetching weights do not need

    try:
        files = Fields(read_json(path, "lock.json", LOCK_LIMIT_BYTES), LOCK_FILE).object("files")
        return {name: _pin_of(files.object(name)) for name in files}
    except UserError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or delete it to forget the first hashes"
        ) from error


def _pin_of(fields: Fields) -> Pin:
    unknown = sorted(set(fields) - set(Pin.__dataclass_fields__))
    if unknown:
        raise UserError(f"{fields.where} has the unknown field {quoted(unknown[0])}")
    sha256 = fields.text("sha256")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"{fields.where}: sha256 is not 64 hexadecimal digits")
    return Pin(sha256, fields.integer("size_bytes", low=0), fields.text("source"), fields.text("pinned"))


def pin(folder: Path, name: str, sha256: str, size_bytes: int, source: str) -> Pin:
    """Remembers the hash of a file for good. Returns the pin, which is the older one if the file is pinned already."""
    with locked(folder, LOCK_FILE):
        pins = read_pins(folder)
        if name in pins:
            return pins[name]
        pins[name] = Pin(sha256, size_bytes, source, time.strftime("%Y-%m-%d", time.gmtime()))
        document = {"schema": "dune.lock/1", "files": {key: asdict(pins[key]) for key in sorted(pins)}}
        _replace(folder / LOCK_FILE, json.dumps(document, indent=1) + "\n")
        return pins[name]


def _replace(path: Path, text: str) -> None:
    """Writes beside `path`, then renames; the caller holds the lock, so there is one writer."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
