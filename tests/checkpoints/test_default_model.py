"""The model that a verb takes when none is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.default_models import CLASSIFY, DEPTH, HUMAN, SEGMENT, DefaultModels
from dune_cli.checkpoints.weights_folder import default_model
from dune_cli.errors import WeightsMissing

VERBS = {models.verb: models for models in (DEPTH, CLASSIFY, SEGMENT)}


@pytest.mark.parametrize("models", [*VERBS.values(), HUMAN], ids=[*VERBS, "human"])
def test_every_candidate_is_published(models: DefaultModels) -> None:
    names = models.candidates
    assert len(set(names)) == len(names)
    assert all(registry.find(name) is not None for name in names)
    assert models.advice in names


def downloaded(verb: str) -> DefaultModels:
    """The models of a verb without what comes with dune."""
    models = VERBS[verb]
    kept = tuple(name for name in models.candidates if (entry := registry.find(name)) is None or not entry.bundled)
    return replace(models, candidates=kept)


def test_without_weights_the_bundled_heads_are_taken() -> None:
    for verb, models in VERBS.items():
        entry = registry.find(models.candidates[-1])
        assert entry is not None and entry.bundled
        assert default_model(VERBS[verb]) == f"dune-{verb}" == entry.name


@pytest.mark.parametrize("verb", VERBS)
def test_without_weights_the_sentence_says_what_to_pull(verb: str) -> None:
    with pytest.raises(WeightsMissing) as caught:
        default_model(downloaded(verb))
    sentence = str(caught.value)
    assert f"dune weights pull {VERBS[verb].advice}'" in sentence
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
        default_model(downloaded("depth"))
    put("dinov2-vits14")
    assert default_model(VERBS["depth"]) == "dinov2-vits14-nyu-linear"
    put("dinov2-vits14-nyu-dpt")
    assert default_model(VERBS["depth"]) == "dinov2-vits14-nyu-dpt"
    put("dunemast3r-vits")
    assert default_model(VERBS["depth"]) == "dinov2-vits14-nyu-dpt"
    put("dune-vits14-448")
    assert default_model(VERBS["depth"]) == "dunemast3r-vits"
    with pytest.raises(WeightsMissing) as caught:
        default_model(downloaded("classify"))
    assert "with its encoder" not in str(caught.value)  # which is here already
    assert Path(folder).is_dir()
