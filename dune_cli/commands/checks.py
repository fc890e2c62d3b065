"""What a command line names that is not on this machine, reported before torch is imported, which takes seconds.

Commands call these after their own checks and before they import what computes. The loaders check the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dune_cli.errors import UserError

OTHER_MODELS = ("timm:", "random:", "teacher:")


def weights(*names: str | None) -> None:
    """WeightsMissing or UserError for a file or registry name that is not here; None and `timm:MODEL` pass."""
    from dune_cli.checkpoints import weights_folder

    for name in names:
        if name is not None and not name.startswith(OTHER_MODELS):
            weights_folder.locate(name)


def first_photo(paths: Sequence[Path]) -> None:
    """UserError where the first photo is none, by its header: what follows takes seconds to import and to load."""
    from dune_cli.io.photos import read_header, read_photo

    if paths and read_header(paths[0]) is None:
        read_photo(paths[0])  # says why


def stored_name(name: str) -> str:
    """A model as --model takes it, for another run in another folder: the whole path of a file, the commit of one on
    the hub."""
    from dune_cli.checkpoints import hub

    if hub.is_hub(name):
        return str(hub.fetch(name).pinned)
    path = Path(name).expanduser()
    return str(path.absolute()) if not name.startswith(OTHER_MODELS) and path.is_file() else name


def folder(path: str, option: str | None = None) -> None:
    """UserError for what is no folder. `option`: names it in the message."""
    if not Path(path).expanduser().is_dir():
        raise UserError(f"{f'{option} ' if option else ''}{path} is no folder; check the path")


def there(paths: Mapping[str, str | None]) -> None:
    """UserError for a file or folder that does not exist; `paths`: by the option that names it, None passes."""
    for option, path in paths.items():
        try:
            missing = path is not None and not Path(path).expanduser().exists()
        except (OSError, ValueError, RuntimeError) as error:  # names that no file system takes; ~nobody
            raise UserError(f"cannot read {option} {path}: {getattr(error, 'strerror', None) or error}") from error
        if missing:
            raise UserError(f"no such file or folder: {option} {path}; check the path")


def teachers(texts: Sequence[str]) -> None:
    """UserError for an unknown teacher or file, or for none; WeightsMissing for one whose weights are not here."""
    from dune_cli.teachers import registry

    if not texts:
        raise UserError(f"--teachers names none; known: {', '.join(registry.names())}")
    for text in texts:
        weights(registry.weights_of(text))


def data(sources: Sequence[str], teacher_texts: Sequence[str]) -> None:
    """UserError for a source of photos that is not there or holds none."""
    from dune_cli.training.common import dataset

    names = [text.partition("=")[0] for text in teacher_texts]
    for text in sources:
        dataset.check_source(dataset.split_tag(text, names)[1])
