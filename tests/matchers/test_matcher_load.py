"""Matchers by name: what is found, what auto takes, what is refused."""

from __future__ import annotations

import pytest

from dune_cli.errors import UserError
from dune_cli.matchers import aliked_lightglue, load, xfeat_lighterglue
from dune_cli.matchers.base import Availability


def test_every_file_is_a_matcher() -> None:
    assert load.names() == ["aliked-lightglue", "dune", "mast3r", "sift", "xfeat-lighterglue"]
    for name in load.names():
        plugin = load._plugin(name)
        assert name == plugin.NAME
        assert isinstance(load.availability(name), Availability)


def test_sift_is_always_ready() -> None:
    assert load.availability("sift").ready
    assert load.load_matcher("sift").name == "sift"


def test_auto_takes_the_best_that_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliked_lightglue, "availability", lambda: Availability(True))
    assert load.choose_auto()[0] == "aliked-lightglue"
    monkeypatch.setattr(aliked_lightglue, "availability", lambda: Availability(False, "why", "pull aliked"))
    monkeypatch.setattr(xfeat_lighterglue, "availability", lambda: Availability(True))
    name, note = load.choose_auto()
    assert name == "xfeat-lighterglue"
    assert "aliked-lightglue" in note
    assert "pull aliked" in note
    monkeypatch.setattr(xfeat_lighterglue, "availability", lambda: Availability(False, "why", "pull xfeat"))
    name, note = load.choose_auto()
    assert name == "sift"
    assert "pull xfeat" in note
    assert load.load_matcher("auto").name == "sift"


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(
        UserError, match=r"unknown matcher 'shift'; allowed: auto, aliked-lightglue, .*; did you mean sift"
    ):
        load.load_matcher("shift")
    with pytest.raises(UserError, match="unknown matcher"):
        load.availability("_kornia")


def test_a_model_is_refused_where_it_has_no_use() -> None:
    with pytest.raises(UserError, match="takes no --model or --encoder; these do: dune, mast3r"):
        load.load_matcher("sift", model="some.pth")
    with pytest.raises(UserError, match="needs a two-view model"):
        load.load_matcher("mast3r")
