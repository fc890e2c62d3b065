"""Loading a verb's matcher: the licence of weights that were pulled for it is named; missing ones are refused once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dune_cli.commands.matching import MatchingOptions, check_matchers
from dune_cli.commands.options import ComputeOptions
from dune_cli.errors import WeightsMissing
from dune_cli.matchers import registry
from dune_cli.provenance import Source


@pytest.mark.parametrize(
    ("name", "named"), [("loma-b128", True), ("aliked-lightglue-bundled", False), ("own.pth", False)]
)
def test_the_licence_of_pulled_weights_is_named(
    name: str, named: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matcher = SimpleNamespace(source=Source(name))
    monkeypatch.setattr(registry, "load_matcher", lambda *_: matcher)
    assert MatchingOptions(matcher="some").load_matcher(ComputeOptions()) is matcher
    noted = capsys.readouterr().err
    assert noted.startswith("matcher some, licence of the weights: none stated for the weights; code MIT") == named
    assert named or not noted


def test_missing_weights_are_refused_with_one_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DUNE_WEIGHTS", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(WeightsMissing) as refused:
        check_matchers(["sift", "loma-b128"])
    assert str(refused.value).count("dune weights pull loma-b128") == 1
    assert str(refused.value).startswith("the matcher loma-b128 cannot run here: the weights loma-b128 (loma_B128.pth)")
