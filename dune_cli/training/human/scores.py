"""A trained head on held-out pictures: how many people it finds, and how far their joints are from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dune_cli.bodies.anny import Anny
from dune_cli.geometry.sim3 import similarity_from_points
from dune_cli.models.multihmr_common import MIN_SCORE, Detections
from dune_cli.models.people_head import HeadedPeople
from dune_cli.training.human.losses import joints_about_head, project
from dune_cli.training.human.people import KEYPOINTS, LabelledPeople

LIMBS = tuple(
    f"{name}.{side}"
    for name in ("upperarm01", "lowerarm01", "wrist", "upperleg01", "lowerleg01", "foot")
    for side in "LR"
)
SAME = 0.15  # of a body's size: distance of two heads that are one
NEAR = 0.1  # of a body's size: distance of joints that are right in the picture
SURE = 0.5  # weight of a joint that is scored


@dataclass(frozen=True)
class FoundBodies:
    """P people that the head found: scores (P,), joints (P, 12, 3) of LIMBS about the head, head (P, 3), head_px
    (P, 2) and joints_px (P, 12, 2)."""

    scores: np.ndarray
    joints: np.ndarray
    head: np.ndarray
    head_px: np.ndarray
    joints_px: np.ndarray


def bodies_of(body: Anny, detections: Detections, joints: Sequence[str]) -> FoundBodies:
    """The bodies of one picture's detections."""
    K = detections.K.expand(len(detections), 3, 3)
    about, pixels = _placed(body, detections.rotations, detections.shape, detections.head, K, joints)
    return FoundBodies(detections.scores.numpy(), about, detections.head.numpy(), detections.head_px.numpy(), pixels)


def labelled_bodies(body: Anny, people: LabelledPeople, joints: Sequence[str]) -> FoundBodies:
    """The bodies of labels."""
    tensors = [torch.from_numpy(value) for value in (people.rotations, people.shape, people.head)]
    K = torch.from_numpy(people.K).expand(len(people), 3, 3)
    about, pixels = _placed(body, *tensors, K, joints)
    return FoundBodies(np.ones(len(people)), about, people.head, people.head_px(), pixels)


@torch.inference_mode()
def _placed(
    body: Anny,
    rotations: torch.Tensor,
    shape: torch.Tensor,
    head: torch.Tensor,
    K: torch.Tensor,
    joints: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    free = [body.joint_names.index(name) for name in joints]
    about = joints_about_head(body, rotations, shape, free)[:, [body.joint_names.index(name) for name in LIMBS]]
    return about.numpy(), project(about + head[:, None], K).numpy()


def score_pictures(
    model: HeadedPeople, body: Anny, pictures: Sequence[tuple[np.ndarray, LabelledPeople]]
) -> dict[str, Any]:
    """Numbers over pictures (S, S, 3) with labelled people.

    found: of the trusted people; precision: of the people found, without those on doubtful ones. mpjpe_mm, pa_mpjpe_mm,
    limbs_near (the share of joints within NEAR of the body's size in the picture), depth_error (relative): over those
    found and the joints that the label is sure of. Beside them "mean pose": the mean of the labels' joints about the
    head, at the true head.
    """
    totals: dict[str, list[float]] = {}
    true_all: list[np.ndarray] = []
    trusted = hits = doubtful = found_all = 0
    for rgb, people in pictures:
        image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float() / 255
        with torch.inference_mode():
            (detections,) = model(image, torch.from_numpy(people.K)[None], MIN_SCORE)
        found = bodies_of(body, detections, model.joints)
        labels = labelled_bodies(body, people, model.joints)
        sizes = np.maximum((people.boxes[:, 2:] - people.boxes[:, :2]).max(1, initial=0), 8)
        taken: set[int] = set()
        for k in np.argsort(-found.scores, kind="stable"):
            if len(people):
                apart = np.linalg.norm(labels.head_px - found.head_px[k], axis=1) / sizes
                apart[list(taken)] = np.inf
                best = int(np.argmin(apart))
                if apart[best] < SAME:
                    taken.add(best)
                    doubtful += not people.trusted[best]
                    if people.trusted[best]:
                        hits += 1
                        _compare(totals, found, int(k), labels, best, people, float(sizes[best]))
                    continue
                inside = (people.boxes[:, :2] <= found.head_px[k]).all(1) & (
                    people.boxes[:, 2:] >= found.head_px[k]
                ).all(1)
                doubtful += bool((inside & ~people.trusted).any())
        trusted += int(people.trusted.sum())
        found_all += len(found.scores)
        true_all.extend(labels.joints[people.trusted])
    mean = np.mean(true_all, axis=0) if true_all else np.zeros((len(LIMBS), 3))
    control = [float(np.linalg.norm(one - mean, axis=-1).mean()) for one in true_all]
    aligned = [_aligned(mean, one) for one in true_all]
    return {
        "pictures": len(pictures),
        "people": trusted,
        "found": round(hits / max(trusted, 1), 4),
        "precision": round(hits / max(found_all - doubtful, 1), 4),
        **{name: round(float(np.mean(values)), 4) for name, values in totals.items()},
        "mean pose mpjpe_mm": round(1000 * float(np.mean(control or [np.nan])), 1),
        "mean pose pa_mpjpe_mm": round(1000 * float(np.mean(aligned or [np.nan])), 1),
    }


def _compare(
    totals: dict[str, list[float]],
    found: FoundBodies,
    k: int,
    labels: FoundBodies,
    best: int,
    people: LabelledPeople,
    size: float,
) -> None:
    columns = [KEYPOINTS.index(name) for name in LIMBS]
    sure = people.place_weights[best, columns] >= SURE
    depth = abs(float(np.log(found.head[k, 2] / labels.head[best, 2])))
    totals.setdefault("depth_error", []).append(float(np.expm1(depth)))
    if sure.sum() < 4:
        return
    mine, true = found.joints[k][sure], labels.joints[best][sure]
    near = np.linalg.norm(found.joints_px[k] - labels.joints_px[best], axis=-1)[sure] < NEAR * size
    values = {
        "mpjpe_mm": 1000 * float(np.linalg.norm(mine - true, axis=-1).mean()),
        "pa_mpjpe_mm": 1000 * _aligned(mine, true),
        "limbs_near": float(near.mean()),
    }
    for name, value in values.items():
        totals.setdefault(name, []).append(value)


def _aligned(points: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in metres after the similarity that fits best."""
    true_from_own = similarity_from_points(true.astype(np.float64), points.astype(np.float64))
    moved = points @ true_from_own[:3, :3].T + true_from_own[:3, 3]
    return float(np.linalg.norm(moved - true, axis=-1).mean())
