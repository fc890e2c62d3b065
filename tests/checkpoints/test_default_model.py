"""The model that a verb takes when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.weights_folder import default_model
from dune_cli.commands import classify, depth, human, segment
from dune_cli.errors import WeightsMissing

VERBS = {
    "depth": (depth.CANDIDATES, depth.ADVICE),
    "classify": (classify.CANDIDATES, classify.ADVICE),
    "segment": (segment.CANDIDATES, segment.ADVICE),
}


@pytest.mark.parametrize(
    ("names", "advice"), [*VERBS.values(), (human.CANDIDATES, human.CANDIDATES[0])], ids=[*VERBS, "human"]
)
def test_every_candidate_is_published(names: tuple[str, ...], advice: str) -> None:
    assert len(set(names)) == len(names)
    assert all(registry.find(name) is not None for name in names)
    assert advice in names


def downloaded(verb: str) -> tuple[tuple[str, ...], str]:
    """The candidates and the advice of a verb without what comes with dune."""
    names, advice = VERBS[verb]
    return tuple(name for name in names if (entry := registry.find(name)) is None or not entry.bundled), advice


def test_without_weights_the_bundled_heads_are_taken() -> None:
    for verb, (names, _) in VERBS.items():
        entry = registry.find(names[-1])
        assert entry is not None and entry.bundled
        assert default_model(verb, *VERBS[verb]) == f"dune-{verb}" == entry.name


@pytest.mark.parametrize("verb", VERBS)
def test_without_weights_the_sentence_says_what_to_pull(verb: str) -> None:
    with pytest.raises(WeightsMissing) as caught:
        default_model(verb, *downloaded(verb))
    sentence = str(caught.value)
    assert f"dune weights pull {VERBS[verb][1]}'" in sentence
    assert "MB with its encoder; licence: Apache-2.0" in sentence
    assert caught.value.exit_code == 3


def test_the_best_one_that_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = weights_folder.weights_folder()

    def put(name: str) -> None:
        entry = registry.find(name)
        assert entry is not None
        (folder / entry.file).write_bytes(b"0")
        monkeypatch.setattr(weights_folder, "_plausible", lambda path, entry: True)

    put("dinov2-vits14-nyu-linear")
    with pytest.raises(WeightsMissing):  # its encoder is not here
        default_model("depth", *downloaded("depth"))
    put("dinov2-vits14")
    assert default_model("depth", *VERBS["depth"]) == "dinov2-vits14-nyu-linear"
    put("dinov2-vits14-nyu-dpt")
    assert default_model("depth", *VERBS["depth"]) == "dinov2-vits14-nyu-dpt"
    put("dunemast3r-vits")
    assert default_model("depth", *VERBS["depth"]) == "dinov2-vits14-nyu-dpt"
    put("dune-vits14-448")
    assert default_model("depth", *VERBS["depth"]) == "dunemast3r-vits"
    with pytest.raises(WeightsMissing) as caught:
        default_model("classify", *downloaded("classify"))
    assert "with its encoder" not in str(caught.value)  # which is here already
    assert Path(folder).is_dir()
