"""Why a photo is not in the scene."""

from __future__ import annotations

from collections.abc import Sequence

from dune_cli.sfm.verification import MIN_INLIERS
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos


def reason_left_out(
    index: int, matched: MatchedPhotos, components: Sequence[tuple[int, ...]], registered: Sequence[int]
) -> str:
    """Why a photo has no pose, in one line."""
    names, verified = matched.names, matched.verified
    if index in matched.duplicates:
        return f"it is the same picture as {names[matched.duplicates[index]]}"
    pair_with = {a if b == index else b: pair for pair in verified.counts for a, b in (pair,) if index in pair}
    if not pair_with:
        return "no match: it was compared with no other photo"
    counts = {other: verified.counts[pair] for other, pair in pair_with.items()}
    inliers = {other: count[1] for other, count in counts.items()}
    rotated = [other for other, pair in pair_with.items() if pair in verified.pure_rotations]
    if rotated:
        best = max(rotated, key=inliers.__getitem__)
        return f"the camera only turned between it and {names[best]}: no parallax"
    connected = [other for other, pair in pair_with.items() if pair in verified.geometry]
    near = [other for other in connected if other in registered]
    if near:
        best = max(near, key=inliers.__getitem__)
        return (
            f"no common tracks: {inliers[best]} matches agree with {names[best]}, but too few are points in the scene"
        )
    if connected:
        component = next((group for group in components if index in group), tuple(connected))
        others = ", ".join(names[other] for other in component if other != index)
        return f"it hangs together only with {others}, and not with the photos that were placed"
    against = [other for other, pair in pair_with.items() if pair in verified.contradicting]
    if against:
        best = max(against, key=inliers.__getitem__)
        return f"{inliers[best]} matches with {names[best]} agree on a motion that is not the scene's, or too uncertain"
    best = max(pair_with, key=counts.__getitem__)
    static = {other: verified.static_matches.get(pair, 0) for other, pair in pair_with.items()}
    most = max(static, key=static.__getitem__)
    if static[most] > inliers[best]:
        return f"what it shares with {names[most]} lies at the same pixels of both photos (a caption, a logo, a border)"
    matches = counts[best][0]
    if matches < MIN_INLIERS:
        return f"no match: at most {matches} matches, with {names[best]}"
    return f"too few inliers: {inliers[best]} of {matches} matches with {names[best]}, the best, agree on a motion"
