"""What is wrong with the command line or missing on the disk, told before torch is imported (seconds later).

Commands call these after their own checks and before they import what computes. The loaders check the same again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dune_cli.errors import PackageMissing, UserError, WeightsMissing

OTHER_MODELS = ("timm:", "random:", "teacher:")


def weights(*names: str | None) -> None:
    """WeightsMissing or UserError for a file or registry name that is not here; None and `timm:MODEL` pass."""
    from dune_cli.checkpoints import weights_folder

    for name in names:
        if name is not None and not name.startswith(OTHER_MODELS):
            weights_folder.locate(name)


def model_of(verb: str, model: str | None, encoder: str | None = None) -> str:
    """`model`, or the best that is here for the verb. WeightsMissing, UserError."""
    from dune_cli.checkpoints import registry, weights_folder
    from dune_cli.checkpoints.defaults import default_model

    chosen = model or default_model(verb)
    weights(chosen, encoder)
    entry = registry.find(chosen)
    if entry is not None and entry.kind == "head" and encoder is None:
        for needed in registry.with_needs([entry]):
            if weights_folder.find_present(needed) is None:
                raise weights_folder.missing(needed)
    return chosen


def model_options(model: str | None, matcher: str, encoder: str | None, size: int | None = None) -> None:
    """UserError for a matcher beside a two-view model, or for a model's options without one."""
    if model is not None and matcher not in ("auto", "mast3r"):
        raise UserError(f"--model brings its own matching, --matcher {matcher} does not go with it; leave one out")
    for name, value in (("--encoder", encoder), ("--size", size)):
        if value is not None and model is None:
            raise UserError(f"{name} belongs to a two-view --model; name that model, or leave {name} out")


def matchers(names: Sequence[str], model: str | None = None, encoder: str | None = None) -> None:
    """UserError for an unknown matcher; WeightsMissing or PackageMissing for one that cannot run here."""
    from dune_cli.matchers import registry as load

    if any(name != "auto" for name in names):
        model_takers(names, model, encoder)
    for name in names:
        if name == "auto" or load.takes_model(name):
            continue
        state = load.availability(name)
        if not state.ready:
            missing = PackageMissing if "pip install" in (state.cure or "") else WeightsMissing
            raise missing(f"the matcher {name} cannot run here: {state.why}; run: {state.cure}")
    weights(model, encoder)


def model_takers(names: Sequence[str], model: str | None, encoder: str | None) -> list[str]:
    """Those of the matchers that a --model is for. UserError where a model is given and none of them takes it."""
    from dune_cli.matchers import registry as load

    takers = [name for name in names if load.takes_model(name)]
    if (model or encoder) and not takers:
        asked = ",".join(names)
        raise UserError(f"--model and --encoder are for the matchers dune and mast3r; received --matcher {asked}")
    return takers


def columns(specs: Sequence[str]) -> None:
    """Of `dune eval features`: encoders, `teacher:NAME`, `random:STUDENT`, `timm:MODEL`, `pixels`."""
    for spec in specs:
        if spec.startswith("teacher:"):
            teachers([spec.removeprefix("teacher:")])
        elif spec != "pixels":
            weights(spec)


def teachers(texts: Sequence[str]) -> None:
    """UserError for an unknown teacher or file, or for none; WeightsMissing for one whose weights are not here."""
    from dune_cli.teachers import registry as load

    if not texts:
        raise UserError(f"--teachers names none; known: {', '.join(load.names())}")
    for text in texts:
        weights(load.weights_of(text))


def data(sources: Sequence[str], teacher_texts: Sequence[str]) -> None:
    """UserError for a source of photos that is not there or holds none."""
    from dune_cli.training.common import dataset

    names = [text.partition("=")[0] for text in teacher_texts]
    for text in sources:
        dataset.check_source(dataset.split_tag(text, names)[1])
