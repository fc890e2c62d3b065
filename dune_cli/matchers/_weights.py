"""Whether the weights of a matcher are here."""

from __future__ import annotations

from dune_cli.errors import DuneError
from dune_cli.matchers.matcher import Availability


def availability_by_weights(*names: str, cure: str | None = None) -> Availability:
    """Ready if the files of the registry's `names` are all here; `cure`: what to do if not; None: to pull the first."""
    from dune_cli.checkpoints import weights_folder

    for name in names:
        try:
            weights_folder.locate(name)
        except DuneError as error:
            return Availability(False, " ".join(str(error).split()), cure or f"dune weights pull {name}")
    return Availability(True)
