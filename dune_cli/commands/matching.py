"""The matcher or two-view model of a verb: its options, what is checked before torch is imported, and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.checks import weights
from dune_cli.commands.options import ComputeOptions, ModelOptions, option
from dune_cli.errors import PackageMissing, UserError, WeightsMissing

if TYPE_CHECKING:
    from dune_cli.io.cache import WorkFolder
    from dune_cli.matchers.matcher import Matcher
    from dune_cli.models.mast3r import TwoViewModel
    from dune_cli.sfm.multiview import MultiViewModel
    from dune_cli.sfm.relative_pose import PairBackend

NEIGHBOURS = 10


@options.group("Matching")
class MatchingOptions(ModelOptions):
    matcher: str = option(
        "--matcher NAME",
        "Feature matcher. auto: the best one on this machine; for a scene of more than two photos, and for queries in "
        "a map, sift at their size, and the best one for those that it leaves out. 'dune doctor' lists all.",
        default="auto",
    )

    def check_combination(self, size: int | None = None) -> None:
        """UserError for a matcher beside a two-view model, or for a model's options without one."""
        if self.model is not None and self.matcher not in ("auto", "mast3r"):
            raise UserError(
                f"--model brings its own matching, --matcher {self.matcher} does not go with it; leave one out"
            )
        for name, value in (("--encoder", self.encoder), ("--size", size)):
            if value is not None and self.model is None:
                raise UserError(f"{name} belongs to a two-view --model; name that model, or leave {name} out")

    def check_present(self) -> None:
        """DuneError for a model or a matcher that cannot run on this machine."""
        weights(self.model, self.encoder)
        if self.model is None:
            check_matchers([self.matcher])

    def load_matcher(self, compute: ComputeOptions, photos: int = 2) -> Matcher:
        """The matcher; with "auto" mast3r where a model is given, else the best one present, which a note names; for
        more than two `photos` the best of the quick ones."""
        from dune_cli.matchers import registry

        name = self.matcher
        if name == "auto" and self.model is not None:
            name = "mast3r"
        elif name == "auto":
            name, text = registry.choose_auto(quick=photos > 2)
            console.note(text)
        return _loaded(name, compute, self.model, self.encoder)

    def load_cascade(self, compute: ComputeOptions, many: bool) -> tuple[Matcher, Callable[[], Matcher] | None]:
        """The matcher, and what loads a second one for photos that the first one leaves out: for "auto" and `many`."""
        from dune_cli.matchers import registry

        if self.matcher != "auto" or self.model is not None or not many:
            return self.load_matcher(compute), None
        matcher, fallback, note = registry.load_cascade(compute.device, compute.dtype)
        console.note(note)
        return matcher, fallback

    def load_two_view(self, compute: ComputeOptions) -> TwoViewModel:
        """The two-view model, with a note about its licence."""
        from dune_cli.checkpoints.loader import load_two_view

        assert self.model is not None
        network = load_two_view(self.model, self.encoder, compute.device, compute.dtype)
        console.note(f"model {network.source.name}, licence {network.source.licence}")
        return network

    def load_scene_model(self, compute: ComputeOptions, metric: str | None) -> TwoViewModel | MultiViewModel:
        """The two-view or multi-view model, with a note about its licence. `metric`: name or file of a metric model."""
        from dune_cli.sfm.multiview import load_scene_model

        assert self.model is not None
        network = load_scene_model(self.model, self.encoder, metric, compute.device, compute.dtype)
        console.note(f"model {network.source.name}, licence {network.source.licence}")
        return network

    def load_pair_backend(self, compute: ComputeOptions, size: int | None) -> PairBackend:
        """The two-view model, or the matcher, that finds what two photos have in common."""
        from dune_cli.sfm.relative_pose import MatcherBackend, TwoViewBackend

        if self.model is not None:
            return TwoViewBackend(self.load_two_view(compute), size)
        return MatcherBackend(self.load_matcher(compute))


@options.group("Matching")
class RetrievalOptions:
    neighbours: int | None = option(
        "--neighbours N",
        "Number of photos to match each photo with, where not all are.",
        options.COUNT,
        aliases=["--top-k"],
        default_text=str(NEIGHBOURS),
    )
    retrieval_model: str | None = option(
        "--retrieval-model NAME|FILE",
        "Encoder of image retrieval, which chooses these photos.",
        aliases=["--retrieval"],
        default_text="dune-mini",
    )
    work: str | None = option(
        "--work DIR|URL",
        "Cache: a folder, or a URL of an object store (s3://bucket/work). A later run reuses its features and matches.",
        heading="Advanced",
        default_text="beside the output or in the map",
    )


def workers_option(what: str, default_text: str) -> Any:
    """--workers. `what` they do."""
    return option(
        "--workers N",
        f"Number of processes, of one thread each, that {what}. The results do not depend on it.",
        options.COUNT,
        heading="Advanced",
        default_text=default_text,
    )


@options.group("Advanced")
class EngineOptions:
    workers: int | None = workers_option(
        "extract features and match pairs", "none: this process; with --engine ray all processors"
    )
    engine: str = option(
        "--engine [processes|ray]",
        "Engine that runs the workers. processes: this machine. ray: Ray on this machine or a cluster, whose machines "
        "share photos and work folder.",
        default="processes",
    )
    ray_address: str | None = option(
        "--ray-address HOST:PORT", "Address of a Ray cluster.", default_text="this machine"
    )

    def refuse(self, method: str) -> None:
        """UserError where workers were asked for, which the `method` of reconstruction does not use."""
        given = {"--workers": self.workers, "--ray-address": self.ray_address}
        given["--engine"] = None if self.engine == "processes" else self.engine
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} belongs to --method matches; leave {name} or --method {method} out")

    @contextmanager
    def shared(self, cache: WorkFolder | None) -> Iterator[WorkFolder | None]:
        """The work folder, which workers fill if the user wants any."""
        from dune_cli.sfm.engine import InProcess, open_engine
        from dune_cli.sfm.shared_work import SharedWork

        if cache is None or cache.place is None:
            yield cache
            return
        with open_engine(self.engine, self.workers, self.ray_address) as engine:
            if isinstance(engine, InProcess):
                yield cache
                return
            shared = SharedWork(cache.place, engine)
            shared.counts = cache.counts
            yield shared


def pairs_option(also: str = "") -> Any:
    """--pairs, the strategy. `also`: another value that the verb takes."""
    return option(
        f"--pairs {'NAME|FILE' if also else 'NAME'}",
        "Pairs of photos to match: all; sequential, each with those that follow; retrieval, each with the most similar "
        f"ones{f'; {also}' if also else ''}. auto: all for up to 20 photos, else those whose largest keypoints match "
        "best (sift), or retrieval.",
        default="auto",
    )


def solver_option() -> Any:
    """--solver, of relative poses."""
    return option(
        "--solver [pnp|essential]",
        "Pose solver. pnp: from pixels of the query and metric points of the reference. essential: from the epipolar "
        "geometry, with the length from these points or a known distance.",
        heading="Matching",
        default_text="pnp where the reference has points in metres",
    )


def mapper_option() -> Any:
    """--mapper."""
    return option(
        "--mapper [incremental|global]",
        "Mapper of pycolmap. incremental: one photo after the other. global: all photos at once, for thousands; the "
        "cameras of more than 50 are calibrated on a part of them before.",
        default="incremental",
    )


@options.group("Model")
class MatchersOptions(ModelOptions):
    matchers: tuple[str, ...] = option(
        "--matchers NAME,...",
        "Feature matchers. auto: the best one on this machine; 'dune doctor' lists all.",
        options.NameList(),
        heading="Matching",
        aliases=["--matcher"],
        default_text="auto; mast3r with --model",
    )
    model: str | None = options.model_of("the model of the matcher dune or mast3r")

    def check_present(self) -> None:
        """DuneError for a model or a matcher that cannot run on this machine."""
        check_matchers(self.matchers, self.model, self.encoder)

    def load(self, compute: ComputeOptions, quick: bool = False) -> dict[str, Matcher]:
        """The matchers by name, in the order asked for, all loaded before the first pair is matched. `quick`: auto is
        the one for more than two photos."""
        from dune_cli.matchers import registry

        names = list(self.matchers) or (["mast3r"] if self.model else ["auto"])
        if "auto" in names:
            best, note = registry.choose_auto(quick)
            console.note(note)
            names = list(dict.fromkeys(best if name == "auto" else name for name in names))
        takers = _model_takers(names, self.model, self.encoder)
        return {
            name: _loaded(name, compute, *((self.model, self.encoder) if name in takers else (None, None)))
            for name in names
        }


def _loaded(name: str, compute: ComputeOptions, model: str | None, encoder: str | None) -> Matcher:
    """The matcher, with a note about the licence of weights that were pulled for it."""
    from dune_cli.checkpoints.registry import find
    from dune_cli.matchers import registry

    matcher = registry.load_matcher(name, compute.device, compute.dtype, model, encoder)
    entry = find(matcher.source.name)
    if entry is not None and entry.bundled is None:
        console.note(f"matcher {name}, licence of the weights: {entry.licence}")
    return matcher


def check_matchers(names: Sequence[str], model: str | None = None, encoder: str | None = None) -> None:
    """UserError for an unknown matcher; WeightsMissing or PackageMissing for one that cannot run here."""
    from dune_cli.matchers import registry

    if any(name != "auto" for name in names):
        _model_takers(names, model, encoder)
    for name in names:
        if name == "auto" or registry.takes_model(name):
            continue
        state = registry.availability(name)
        if not state.ready:
            missing = PackageMissing if "pip install" in (state.cure or "") else WeightsMissing
            advice = "" if state.cure in state.why else f"; run: {state.cure}"
            raise missing(f"the matcher {name} cannot run here: {state.why}{advice}")
    weights(model, encoder)


def _model_takers(names: Sequence[str], model: str | None, encoder: str | None) -> list[str]:
    """Those of the matchers that a --model is for. UserError where a model is given and none of them takes it."""
    from dune_cli.matchers import registry

    takers = [name for name in names if registry.takes_model(name)]
    if (model or encoder) and not takers:
        raise UserError(f"--model and --encoder are for the matchers dune and mast3r; received {', '.join(names)}")
    return takers
