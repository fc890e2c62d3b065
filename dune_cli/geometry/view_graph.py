"""View graphs: connected components, and poses of views from relative similarities, some of which are wrong.

Edge e is `first_from_second[e]` (4, 4) between the frames of views `pairs[e]`, with a `score`. The median depth of a
frame has a length of about 1, so that translations compare across edges.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csgraph

from dune_cli.geometry.poses import rotation_angle
from dune_cli.geometry.sim3 import rigid_part, scale_of

MAX_ROTATION = np.radians(10.0)
MAX_LOG_SCALE = 0.25
MAX_TRANSLATION = 0.25  # of the median depth
ROUNDS, TREES = 4, 12


def components(count: int, pairs: np.ndarray) -> list[np.ndarray]:
    """The views of every connected component, largest first, then by their smallest view."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    number, labels = csgraph.connected_components(graph, directed=False)
    members = [np.flatnonzero(labels == label) for label in range(number)]
    return sorted(members, key=lambda views: (-len(views), views[0]))


def register_views(
    count: int, pairs: np.ndarray, first_from_second: np.ndarray, scores: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The poses of the views of the largest component: `root_from_view` (count, 4, 4), `registered` (count,), `inliers`
    (E,).

    The poses are chained along a maximum spanning tree over the scores, which are raised where an edge closes triangles
    with others. The inliers are the edges that agree with the poses. The weights of the outliers are reduced and the
    tree is grown again, a few times, also with randomly scaled weights; the tree with the largest sum of scores of its
    inliers is returned.
    """
    scores = scores * _triangle_support(count, pairs, first_from_second)
    component = components(count, pairs)[0]
    registered = np.isin(np.arange(count), component)
    inside = registered[pairs[:, 0]]
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    weights = scores.copy()
    for _ in range(ROUNDS):
        for number in range(TREES):
            scaled = weights if number == 0 else weights * rng.exponential(size=len(weights))
            root_from_view = _chain_poses(count, component, pairs, first_from_second, scaled)
            inliers = inside & _agreeing_edges(root_from_view, pairs, first_from_second)
            total = float(scores[inliers].sum())
            if best is None or total > best[0] * (1 + 1e-9):
                best = total, root_from_view, inliers
        weights = np.where(best[2], weights, 0.1 * weights)
        if best[2][inside].all():
            break
    return best[1], registered, best[2]


def _chain_poses(
    count: int, component: np.ndarray, pairs: np.ndarray, first_from_second: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """(count, 4, 4) along the maximum spanning tree from the component's first view; identity outside of it."""
    order = np.argsort(-scores, kind="stable")
    i, j = pairs[order].min(1), pairs[order].max(1)
    _, first = np.unique(i * count + j, return_index=True)
    kept = order[first]
    weights = 1 + scores.max() - scores[kept]  # of a minimum spanning tree, none of them zero
    graph = coo_matrix((weights, (pairs[kept].min(1), pairs[kept].max(1))), (count, count))
    tree = csgraph.minimum_spanning_tree(graph.tocsr())
    edge_of = {tuple(sorted(pairs[e])): e for e in kept.tolist()}
    nodes, parents = csgraph.breadth_first_order(tree, component[0], directed=False)
    poses = np.tile(np.eye(4), (count, 1, 1))
    for node in nodes[1:]:
        parent = parents[node]
        edge = edge_of[tuple(sorted((int(parent), int(node))))]
        step = first_from_second[edge]
        poses[node] = poses[parent] @ (step if pairs[edge, 0] == parent else np.linalg.inv(step))
    return poses


def _agreeing_edges(root_from_view: np.ndarray, pairs: np.ndarray, first_from_second: np.ndarray) -> np.ndarray:
    """(E,) bool: the edges that agree with the poses."""
    relative = np.linalg.inv(root_from_view[pairs[:, 0]]) @ root_from_view[pairs[:, 1]]
    return _are_similar(relative, first_from_second)


def _are_similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rotation = rotation_angle(np.swapaxes(rigid_part(a)[..., :3, :3], -1, -2) @ rigid_part(b)[..., :3, :3])
    log_scale = np.abs(np.log(scale_of(a) / scale_of(b)))
    translation = np.linalg.norm(a[..., :3, 3] - b[..., :3, 3], axis=-1)
    return (rotation < MAX_ROTATION) & (log_scale < MAX_LOG_SCALE) & (translation < MAX_TRANSLATION)


def _triangle_support(count: int, pairs: np.ndarray, first_from_second: np.ndarray) -> np.ndarray:
    """(E,) in (0, 1): the share of the triangles over an edge that close, with one closing and one open triangle added
    to each."""
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
            closing = int(_are_similar(around, first_from_second[index]).sum())
        support[index] = (closing + 1) / (len(shared) + 2)
    return support
