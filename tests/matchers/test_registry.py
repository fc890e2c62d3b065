"""Matchers by name: what is found, what auto takes, what is refused."""

from __future__ import annotations

import pytest

from dune_cli.errors import UserError
from dune_cli.matchers import aliked_lightglue, registry, xfeat_lighterglue
from dune_cli.matchers.matcher import Availability


def test_every_file_is_a_matcher() -> None:
    assert registry.names() == ["aliked-lightglue", "dune", "loma-b128", "mast3r", "sift", "xfeat-lighterglue"]
    for name in registry.names():
        plugin = registry._plugin(name)
        assert name == plugin.NAME
        assert isinstance(registry.availability(name), Availability)


def test_sift_is_always_ready() -> None:
    assert registry.availability("sift").ready
    assert registry.load_matcher("sift").name == "sift"


def test_auto_takes_the_best_that_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.choose_auto()[0] == "aliked-lightglue"
    monkeypatch.setattr(aliked_lightglue, "availability", lambda: Availability(False, "why", "pull aliked"))
    name, note = registry.choose_auto()
    assert name == "xfeat-lighterglue"
    assert "aliked-lightglue" in note
    assert "pull aliked" in note
    monkeypatch.setattr(xfeat_lighterglue, "availability", lambda: Availability(False, "why", "pull xfeat"))
    name, note = registry.choose_auto()
    assert name == "sift"
    assert "pull xfeat" in note
    assert registry.load_matcher("auto").name == "sift"


def test_auto_takes_a_quick_one_for_many_photos() -> None:
    name, note = registry.choose_auto(quick=True)
    assert name == "xfeat-lighterglue"
    assert "--matcher aliked-lightglue reaches" in note


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(
        UserError, match=r"unknown matcher 'shift'; allowed: auto, aliked-lightglue, .*; did you mean sift"
    ):
        registry.load_matcher("shift")
    with pytest.raises(UserError, match="unknown matcher"):
        registry.availability("_match_head")


def test_a_model_is_refused_where_it_has_no_use() -> None:
    with pytest.raises(UserError, match="takes no --model or --encoder; these do: dune, mast3r"):
        registry.load_matcher("sift", model="some.pth")
    with pytest.raises(UserError, match="needs a two-view model"):
        registry.load_matcher("mast3r")
