"""Values out of a list, with a suggestion for one that is none of them."""

from __future__ import annotations

import difflib
from typing import Any

import click


class NearChoice(click.Choice[str]):
    """As Click's, whose error proposes the nearest value. `hint`: what else the error says of a value."""

    def hint(self, value: str) -> str:
        near = difflib.get_close_matches(value, self.choices, 1)
        return f"Did you mean {near[0]!r}?" if near else ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = self.hint(str(value))
            error.message += f" {hint}" if hint else ""
            raise
