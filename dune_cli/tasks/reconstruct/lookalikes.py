"""Verified pairs that contradict the scene: which of both is wrong, and what the user is told."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace

from dune_cli import console
from dune_cli.progress import amount
from dune_cli.provenance import Run
from dune_cli.sfm.lookalikes import Judge, Pair, pairs_with_two_motions
from dune_cli.sfm.mapper import CONTRADICTED, FEW
from dune_cli.tasks.reconstruct.mapped_photos import MappedPhotos
from dune_cli.tasks.reconstruct.matched_photos import NAMES_IN_NOTE, MatchedPhotos

ROUNDS = 3
KEPT = 0.9  # of the photos, which a model that contradicts less must place
UNSETTLED = 0.02  # of the inliers, which contradict the scene, from which on it is doubtful
# of the tested pairs, in a scene that pairs contradict and in any: a head on a turntable before a still room has 24 of
# 24, eight still scenes 0 to 2, and 40 photos of a phone, whose screen mirrors the room, 9
TWO_MOTIONS, MOSTLY_TWO_MOTIONS, LEAST_PAIRS = 0.3, 0.8, 4


def without_lookalikes(mapped: MappedPhotos, again: Callable[[MappedPhotos], MappedPhotos], run: Run) -> MappedPhotos:
    """The photos without the pairs that contradict the largest model, the models, and notes for the user; see
    `settled`."""
    mapped, judge = settled(mapped, again, run)
    with run.stage("verify"):
        placed = judge.agreement.keys()
        against = set(judge.contradicted) | (mapped.given_up - placed)
        notes = _notes(mapped.matched, judge, against, mapped.given_up)
    verified = replace(mapped.matched.verified.without(against), contradicting=frozenset(against))
    return replace(mapped, matched=replace(mapped.matched, verified=verified), notes=(*mapped.notes, *notes))


def settled(
    mapped: MappedPhotos, again: Callable[[MappedPhotos], MappedPhotos], run: Run, bridges: bool = True
) -> tuple[MappedPhotos, Judge]:
    """The models without pairs that are wrong, and the pairs beside the largest of them.

    Where heavier pairs contradict it than those that they would have to replace, these are given up, as are weak pairs
    that alone tie photos to the others (`bridges`), and the models are made `again`, perhaps with other cameras. They
    are kept where that contradicts less and places the photos as well.
    """
    judge = _judge(mapped)
    for _ in range(ROUNDS):
        with run.stage("verify"):
            weak = judge.weak_bridges() - mapped.given_up if bridges else set()
            doubtful = weak or (judge.doubtful() if _is_doubted(judge) else set())
        if not doubtful:
            break
        console.note(f"{amount(len(doubtful), 'pair')} may tie photos to look-alikes, and the others are mapped again")
        other = again(replace(mapped, given_up=mapped.given_up | doubtful, draft=None))
        if not other.models or len(other.placed) < KEPT * len(mapped.placed) - len(weak):
            break
        other_judge = _judge(other)
        weights = judge.weights
        before, after = (sum(weights.get(pair, 0.0) for pair in side.contradicted) for side in (judge, other_judge))
        if after > before or (after == before and not weak):
            break
        mapped, judge = other, other_judge
    return mapped, judge


def _is_doubted(judge: Judge) -> bool:
    """Whether pairs contradict the scene, of many photos so many that it is worth mapping them again."""
    least = CONTRADICTED if len(judge.cameras.ids) > FEW else 0.0
    return judge.share(judge.contradicted) > least


def _judge(mapped: MappedPhotos) -> Judge:
    matched = mapped.matched
    return Judge(mapped.models[0], matched.correspondences, matched.verified, matched.cameras)


def _notes(matched: MatchedPhotos, judge: Judge, against: Set[Pair], given_up: Set[Pair]) -> tuple[str, ...]:
    notes = []
    if against:
        heaviest = sorted(against, key=lambda pair: (-matched.verified.counts[pair][1], pair))
        named = ", ".join(" with ".join(matched.names[index] for index in pair) for pair in heaviest[:NAMES_IN_NOTE])
        more = f" and {len(against) - NAMES_IN_NOTE} more" if len(against) > NAMES_IN_NOTE else ""
        notes.append(
            f"{amount(len(against), 'verified pair')} of photos have no part in the scene, because they contradict it "
            f"(a look-alike, a thing that moved) or are too weak as the only tie of a photo: {named}{more}"
        )
    unsettled = judge.share(against - given_up)
    two, tested = pairs_with_two_motions(judge)
    least = TWO_MOTIONS if unsettled >= UNSETTLED else MOSTLY_TWO_MOTIONS
    if two >= max(LEAST_PAIRS, least * tested):
        notes.append(
            f"warning: in {two} of {tested} pairs of photos the matches show two motions, and a scene can have one: a "
            "thing turns before a still background or moves, or parts look alike. The scene may be wrong; mask what is "
            "not wanted with --masks DIR or --mask NAMES"
        )
    elif unsettled >= UNSETTLED:
        notes.append(
            f"warning: {100 * unsettled:.0f} % of the inliers of all pairs contradict the scene, "
            "so that parts of it may be wrong: look at it, and take photos between those that are named above"
        )
    return tuple(notes)
