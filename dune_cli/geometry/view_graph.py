"""Views joined by similarities, some of them wrong: the spanning tree on which most of them agree.

An edge e says `first_from_second[e]` (4, 4) between the frames of views `pairs[e]`, with a `score`. Frames have lengths
of about their median depth, so that translations compare across edges.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csgraph

from dune_cli.geometry.poses import rotation_angle
from dune_cli.geometry.sim3 import rigid_part, scale_of

MAX_TURN = np.radians(10.0)
MAX_LOG_SCALE = 0.25
MAX_SHIFT = 0.25  # of the median depth
ROUNDS, TREES = 4, 12


def components(count: int, pairs: np.ndarray) -> list[np.ndarray]:
    """The views of every connected component, largest first, then by their smallest view."""
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    number, labels = csgraph.connected_components(links, directed=False)
    groups = [np.flatnonzero(labels == label) for label in range(number)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def place_views(
    count: int, pairs: np.ndarray, first_from_second: np.ndarray, scores: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places the views of the largest component: `root_from_view` (count, 4, 4), `placed` (count,), `agree` (E,).

    `agree` says which edges the placement explains. The tree is a maximum spanning tree over the scores, raised where
    an edge closes triangles with others; edges that lose the vote are then trusted less and the tree is grown again, a
    few times, also with scores shaken at random; the tree that explains the largest sum of scores is kept.
    """
    scores = scores * _triangle_support(count, pairs, first_from_second)
    group = components(count, pairs)[0]
    placed = np.isin(np.arange(count), group)
    inside = placed[pairs[:, 0]]
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    trust = scores.copy()
    for _ in range(ROUNDS):
        for number in range(TREES):
            shaken = trust if number == 0 else trust * rng.exponential(size=len(trust))
            root_from_view = _grow(count, group, pairs, first_from_second, shaken)
            agree = inside & _explained(root_from_view, pairs, first_from_second)
            votes = float(scores[agree].sum())
            if best is None or votes > best[0] * (1 + 1e-9):
                best = votes, root_from_view, agree
        trust = np.where(best[2], trust, 0.1 * trust)
        if best[2][inside].all():
            break
    return best[1], placed, best[2]


def _grow(
    count: int, group: np.ndarray, pairs: np.ndarray, first_from_second: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """(count, 4, 4) along the maximum spanning tree from the group's first view; identity outside the group."""
    order = np.argsort(-scores, kind="stable")
    i, j = pairs[order].min(1), pairs[order].max(1)
    _, first = np.unique(i * count + j, return_index=True)
    kept = order[first]
    weights = 1 + scores.max() - scores[kept]  # of a minimum spanning tree, none of them zero
    graph = coo_matrix((weights, (pairs[kept].min(1), pairs[kept].max(1))), (count, count))
    tree = csgraph.minimum_spanning_tree(graph.tocsr())
    edge_of = {tuple(sorted(pairs[e])): e for e in kept.tolist()}
    nodes, parents = csgraph.breadth_first_order(tree, group[0], directed=False)
    placed = np.tile(np.eye(4), (count, 1, 1))
    for node in nodes[1:]:
        parent = parents[node]
        edge = edge_of[tuple(sorted((int(parent), int(node))))]
        step = first_from_second[edge]
        placed[node] = placed[parent] @ (step if pairs[edge, 0] == parent else np.linalg.inv(step))
    return placed


def _explained(root_from_view: np.ndarray, pairs: np.ndarray, first_from_second: np.ndarray) -> np.ndarray:
    """(E,) bool: the edges that a placement agrees with."""
    found = np.linalg.inv(root_from_view[pairs[:, 0]]) @ root_from_view[pairs[:, 1]]
    return _same(found, first_from_second)


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    turn = rotation_angle(np.swapaxes(rigid_part(a)[..., :3, :3], -1, -2) @ rigid_part(b)[..., :3, :3])
    log_scale = np.abs(np.log(scale_of(a) / scale_of(b)))
    shift = np.linalg.norm(a[..., :3, 3] - b[..., :3, 3], axis=-1)
    return (turn < MAX_TURN) & (log_scale < MAX_LOG_SCALE) & (shift < MAX_SHIFT)


def _triangle_support(count: int, pairs: np.ndarray, first_from_second: np.ndarray) -> np.ndarray:
    """(E,) in (0, 1): the share of the triangles over an edge that close, counting one that does and one that does
    not in advance."""
    edges: dict[int, dict[int, np.ndarray]] = {view: {} for view in range(count)}
    for (i, j), step in zip(pairs.tolist(), first_from_second):
        edges[i].setdefault(j, step)
    for (i, j), step in zip(pairs.tolist(), np.linalg.inv(first_from_second)):
        edges[j].setdefault(i, step)
    support = np.empty(len(pairs))
    for index, (i, j) in enumerate(pairs.tolist()):
        shared = [k for k in edges[i] if k in edges[j] and k != j]
        closing = 0
        if shared:
            around = np.stack([edges[i][k] @ edges[k][j] for k in shared])
            closing = int(_same(around, first_from_second[index]).sum())
        support[index] = (closing + 1) / (len(shared) + 2)
    return support
