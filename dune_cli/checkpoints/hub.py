"""Weight files of the Hugging Face hub, `hf://owner/name/file[@revision]`: fetched into its cache, and published.

Only safetensors are taken. The revision that was found is part of the name of what was computed with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from dune_cli import console, optional
from dune_cli.errors import DuneError, JobFailed, UserError, WeightsMissing

PREFIX = "hf://"
SUFFIX = ".safetensors"
CONFIG = "config.json"  # beside the weights of some layouts
MODEL_CARD = "README.md"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of the hub. `revision`: a branch, a tag or a commit; None is the main branch."""

    repository: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}/{self.file}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class FetchedFile:
    """A file of the hub on this machine, and the same with the commit that it is of."""

    path: Path
    pinned: HubFile


def is_hub(text: object) -> bool:
    """Whether a name is one of the hub."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_file(text: str) -> HubFile:
    """`hf://owner/name/file.safetensors[@revision]`. UserError for what is none, and for other kinds of files."""
    place, at, revision = text.removeprefix(PREFIX).partition("@")
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if not (_PART.fullmatch(owner) and _PART.fullmatch(name) and _FILE.fullmatch(file)) or (
        at and not _REVISION.fullmatch(revision)
    ):
        raise UserError(f"{text} names no file of the hub; write {PREFIX}OWNER/NAME/FILE{SUFFIX}, or add @REVISION")
    if not file.endswith(SUFFIX):
        raise UserError(
            f"{text} is no {SUFFIX} file, and of the hub no other is taken, as pickles can run programs; name a "
            f"{SUFFIX} file of {owner}/{name}, or ask its owner for one"
        )
    return HubFile(f"{owner}/{name}", file, revision or None)


def parse_repository(text: str) -> str:
    """`hf://owner/name` -> "owner/name". UserError for what is none."""
    parts = text.removeprefix(PREFIX).split("/")
    if not is_hub(text) or len(parts) != 2 or not all(map(_PART.fullmatch, parts)):
        raise UserError(f"{text} is no repository of the hub; write {PREFIX}OWNER/NAME")
    return "/".join(parts)


def offline_variable() -> str | None:
    """The environment variable that forbids downloads; None where none does."""
    off = ("", "0", "false", "no", "off")
    names = ("DUNE_OFFLINE", "HF_HUB_OFFLINE")
    return next((name for name in names if os.environ.get(name, "0").lower() not in off), None)


def fetch(text: str) -> FetchedFile:
    """The file of the hub in the cache of huggingface_hub, downloaded where it is not there; once a process.

    Offline only the cache is looked at. WeightsMissing for a file that is not there then; UserError for a repository, a
    revision or a file that does not exist or is not open to this login; JobFailed where the hub does not answer;
    PackageMissing.
    """
    return _fetch(text, offline_variable())


@cache
def _fetch(text: str, offline: str | None) -> FetchedFile:
    wanted = parse_file(text)
    module = _package()
    with _named_errors(text, wanted, offline):
        path = Path(_download(module, wanted, wanted.file, wanted.revision, offline))
        commit = _commit(path)
        unknown = module.try_to_load_from_cache(wanted.repository, CONFIG, revision=commit) is None
        if unknown and offline is None:
            with suppress(module.errors.EntryNotFoundError):  # most layouts have none
                _download(module, wanted, CONFIG, commit, offline)
    pinned = HubFile(wanted.repository, wanted.file, commit)
    if wanted.revision != commit:
        console.note(f"{text}: revision {commit}")
    return FetchedFile(path, pinned)


def _download(module: ModuleType, wanted: HubFile, file: str, revision: str | None, offline: str | None) -> str:
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return str(
        module.hf_hub_download(
            wanted.repository, file, revision=revision, local_files_only=offline is not None, endpoint=endpoint
        )
    )


def _commit(path: Path) -> str:
    """The commit in a path of the cache, `…/snapshots/COMMIT/file`."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1]


@contextmanager
def _named_errors(text: str, wanted: HubFile, offline: str | None) -> Iterator[None]:
    """What huggingface_hub raises, in a sentence."""
    errors = _package().errors
    page = f"huggingface.co/{wanted.repository}"
    try:
        yield
    except DuneError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{text}: {wanted.repository} is open only to those who accept its terms; accept them on {page} and run "
            "'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{text}: the hub has no repository {wanted.repository}, or this login may not see it; check the name, or "
            "run 'hf auth login'"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{text}: {wanted.repository} has no revision {wanted.revision}; see {page}") from error
    except errors.LocalEntryNotFoundError as error:
        if offline is not None:
            at = f" --revision {wanted.revision}" if wanted.revision else ""
            raise WeightsMissing(
                f"{text} is not in the cache of the Hugging Face hub, and {offline} forbids downloads; unset it, or "
                f"run 'hf download {wanted.repository} {wanted.file}{at}' where there is a network"
            ) from error
        raise _no_answer(text, error) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{text}: {wanted.repository} has no file {wanted.file}; see {page}/tree/main") from error
    except Exception as error:  # of the HTTP library, whose name changes
        raise _no_answer(text, error) from error


def _no_answer(text: str, error: Exception) -> JobFailed:
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return JobFailed(f"{text}: the Hugging Face hub does not answer as it should ({why[:200]}); try again later")


def check_login(target: str) -> None:
    """Before hours of work: whether this machine can publish to `target`, `hf://owner/name`.

    UserError for what is no repository, without a login, or offline; JobFailed where the hub does not answer;
    PackageMissing.
    """
    parse_repository(target)
    module, offline = _package(), offline_variable()
    if offline is not None:
        raise UserError(f"{offline} forbids the network, which --push needs; unset it, or leave --push out")
    try:
        module.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None).whoami()
    except module.errors.LocalTokenNotFoundError as error:
        raise UserError("--push needs a login to the Hugging Face hub; run 'hf auth login'") from error
    except module.errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError("the hub refuses the login of this machine; run 'hf auth login' again") from error
        raise _no_answer(target, error) from error
    except Exception as error:
        raise _no_answer(target, error) from error


def publish(target: str, files: Mapping[str, Path], card: str) -> str:
    """Puts `files` (name in the repository -> file here) and the model card into `hf://owner/name`, in one commit.

    A repository that does not exist is made, private. Returns `hf://owner/name@commit`. UserError for what is no
    repository; JobFailed where the hub refuses or does not answer; the files here stay as they are.
    """
    repository, module = parse_repository(target), _package()
    add = module.CommitOperationAdd
    operations = [add(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    operations.append(add(path_in_repo=MODEL_CARD, path_or_fileobj=card.encode()))
    try:
        api = module.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=f"{', '.join(files)} of dune")
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise JobFailed(
            f"{target}: the Hugging Face hub did not take the files ({why}); they are in "
            f"{next(iter(files.values())).parent}, and the same command tries again"
        ) from error
    return f"{PREFIX}{repository}@{done.oid}"


def _package() -> ModuleType:
    module = optional.require("huggingface_hub", f"{PREFIX}…", extra="hub")
    optional.require("huggingface_hub.errors", f"{PREFIX}…", extra="hub")
    return module
