"""Values of options: out of a list, with a suggestion for one that is none of them, and whole numbers of any size."""

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


class WholeNumber(click.IntRange):
    """As Click's range from `min` on, with an end that --help does not show: numbers that the libraries below take."""

    def __init__(self, min: int, most: int = 2**31 - 1) -> None:
        super().__init__(min)
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = super().convert(value, param, ctx)
        if number > self.most:
            self.fail(f"{value} is too large; at most {self.most} is taken.", param, ctx)
        return number
