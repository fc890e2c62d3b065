"""The settings of a training: what every settings dataclass has, its checks, and its comparison on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

from dune_cli.errors import UserError
from dune_cli.io.safe_read import shown

MAX_LISTED = 4  # changed settings in a message


class TrainingConfig:
    """Base of the frozen dataclasses that hold a training's settings; `RunFolder` writes and compares them.

    SCHEMA: of config.json. KIND: the training in messages, such as "a distillation". MAY_CHANGE: settings that a
    resumed run may change, because the result does not depend on them. INPUTS: what config.json records besides the
    settings, as name -> words in messages; of an input with several parts, {} is the part's name.
    """

    SCHEMA: ClassVar[str]
    KIND: ClassVar[str]
    MAY_CHANGE: ClassVar[frozenset[str]]
    INPUTS: ClassVar[dict[str, str]]

    steps: int
    seed: int
    learning_rate: float
    checkpoint_minutes: float
    log_every: int

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changes_from(self, recorded: Mapping[str, Any]) -> list[str]:
        """The settings that differ from those of an earlier call, as `name: old → new`, without MAY_CHANGE."""
        return self._changes(recorded, [field.name for field in fields(self) if field.name not in self.MAY_CHANGE])

    def _changes(self, recorded: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        current = self.as_json()
        changed = [n for n in names if n not in recorded or json.dumps(recorded[n]) != json.dumps(current[n])]
        listed = [f"{n}: {_as_text(recorded.get(n))} → {_as_text(current[n])}" for n in changed[:MAX_LISTED]]
        return listed + ([f"and {len(changed) - MAX_LISTED} more"] if len(changed) > MAX_LISTED else [])

    def check_common(self) -> None:
        """UserError for values of the settings above that no training takes."""
        check_minimum(1, {"--steps": self.steps, "--log-every": self.log_every})
        check_minimum(0, {"--seed": self.seed})
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"--lr {self.learning_rate} must be above 0")


def check_minimum(low: int, values: Mapping[str, int]) -> None:
    """UserError for an option whose value is below `low`. values: option -> value."""
    for option, value in values.items():
        if value < low:
            raise UserError(f"{option} {value} must be {low} or more")


def check_choice(option: str, value: str, allowed: Sequence[str]) -> None:
    """UserError for a value that is not in `allowed`."""
    if value not in allowed:
        raise UserError(f"{option} {value!r} is unknown; allowed: {', '.join(allowed)}")


def _as_text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown(text) if text else "nothing"
