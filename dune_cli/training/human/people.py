"""People with known bodies in a square picture: what the head learns from, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from dune_cli.bodies.pose_sampling import MIRROR, mirrored
from dune_cli.bodies.skeleton import FREE_JOINTS

MOST_PEOPLE = 32  # of a picture; further ones are left out, the smallest first
# joints whose places are compared
KEYPOINTS = (*FREE_JOINTS, *(f"{name}.{side}" for name in ("eye", "finger2-1", "toe1-1") for side in "LR"))
LEAST_WEIGHT = 0.1  # of what was not seen, whose place is the fit's guess
_TRUNK = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
# landmarks that tell where a joint is, and those that tell how it is turned; others: the trunk's
_PLACE = {
    **{"upperarm01": "shoulder", "lowerarm01": "elbow", "wrist": "wrist", "finger2-1": "index"},
    **{"upperleg01": "hip", "lowerleg01": "knee", "foot": "ankle", "toe1-1": "foot_index", "eye": "eye"},
}
_TURN = {
    **{"clavicle": "shoulder", "shoulder01": "shoulder", "upperarm01": "elbow", "lowerarm01": "wrist"},
    **{"wrist": "index", "upperleg01": "knee", "lowerleg01": "ankle", "foot": "foot_index"},
}


@dataclass(frozen=True)
class LabelledPeople:
    """P people in a picture with the camera K (3, 3), pixels from the picture's corner.

    rotations (P, F, 3, 3) of FREE_JOINTS and shape (P, 6), as `Anny.forward` takes them. head (P, 3): the place of the
    head joint. turn_weights (P, F), place_weights (P, len(KEYPOINTS)) in [0, 1]: how
    sure each is. boxes (P, 4): left, top, right, bottom, px. trusted (P,): whether to learn the person; of others the
    cells in their boxes are neither people nor background. Float32.
    """

    K: np.ndarray
    rotations: np.ndarray
    shape: np.ndarray
    head: np.ndarray
    turn_weights: np.ndarray
    place_weights: np.ndarray
    boxes: np.ndarray
    trusted: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, chosen: np.ndarray) -> LabelledPeople:
        """Some of the people."""
        return LabelledPeople(self.K, **{name: value[chosen] for name, value in self.by_person().items()})

    def by_person(self) -> dict[str, np.ndarray]:
        """The arrays with a row a person, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "K"}

    def head_px(self) -> np.ndarray:
        """(P, 2): the head joint in the picture."""
        image = self.head @ self.K.T
        return image[:, :2] / np.maximum(image[:, 2:], 1e-3)

    def moved(self, square_from_picture: np.ndarray, size_px: int) -> LabelledPeople:
        """The people in a part of the picture: a scale and a shift (3, 3) of pixels from the corner, to a square of
        `size_px`. People outside are left out; those whose head is outside are not trusted."""
        boxes = self.boxes * np.tile(square_from_picture.diagonal()[:2], 2) + np.tile(square_from_picture[:2, 2], 2)
        seen = replace(self, K=(square_from_picture @ self.K).astype(np.float32), boxes=boxes.astype(np.float32))
        inside = (boxes[:, :2] < size_px - 1).all(1) & (boxes[:, 2:] > 1).all(1)
        return seen[inside].with_heads_inside(size_px)

    def with_heads_inside(self, size_px: int) -> LabelledPeople:
        """The same, where only heads inside the square are trusted."""
        head = self.head_px()
        inside = (head >= 0).all(1) & (head < size_px).all(1) & (self.head[:, 2] > 0.1)
        return replace(self, trusted=self.trusted & inside)

    def flipped(self, size_px: int) -> LabelledPeople:
        """The people in the square's mirror image."""
        K = self.K.copy()
        K[0, 2] = size_px - K[0, 2]
        turn = [_other_side(FREE_JOINTS), _other_side(KEYPOINTS)]
        left, right = size_px - self.boxes[:, 2], size_px - self.boxes[:, 0]
        return replace(
            self,
            K=K,
            rotations=mirrored(self.rotations).astype(np.float32),
            head=(self.head @ MIRROR).astype(np.float32),
            turn_weights=self.turn_weights[:, turn[0]],
            place_weights=self.place_weights[:, turn[1]],
            boxes=np.stack([left, self.boxes[:, 1], right, self.boxes[:, 3]], 1),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays of fixed sizes: MOST_PEOPLE rows, and "people", the number of those that are used."""
        area = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1) + 1e9 * self.trusted
        kept = self[np.sort(np.argsort(-area, kind="stable")[:MOST_PEOPLE])]
        padded = {
            name: np.concatenate([value, np.zeros((MOST_PEOPLE - len(kept), *value.shape[1:]), value.dtype)])
            for name, value in kept.by_person().items()
        }
        return {"K": self.K.astype(np.float32), "people": np.array(len(kept), np.int64), **padded}


def nobody(K: np.ndarray) -> LabelledPeople:
    """A picture without people."""
    sizes = {
        "rotations": (len(FREE_JOINTS), 3, 3),
        "shape": (6,),
        "head": (3,),
        "turn_weights": (len(FREE_JOINTS),),
        "place_weights": (len(KEYPOINTS),),
        "boxes": (4,),
    }
    empty = {name: np.zeros((0, *size), np.float32) for name, size in sizes.items()}
    return LabelledPeople(K.astype(np.float32), **empty, trusted=np.zeros(0, bool))


def weights_of(confidence: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """turn_weights and place_weights from the confidence (P,) of each of BLAZEPOSE_NAMES."""
    trunk = np.mean([confidence[name] for name in _TRUNK], axis=0)

    def of(joint: str, table: dict[str, str]) -> np.ndarray:
        bone, _, side = joint.partition(".")
        if bone in ("head", "neck03", "neck02"):
            return confidence["nose"]
        if bone not in table:
            return trunk
        return confidence[f"{'left' if side == 'L' else 'right'}_{table[bone]}"]

    both = ((FREE_JOINTS, _TURN), (KEYPOINTS, _PLACE))
    turn, place = (np.stack([of(joint, table) for joint in joints], 1) for joints, table in both)
    return np.maximum(turn, LEAST_WEIGHT).astype(np.float32), np.maximum(place, LEAST_WEIGHT).astype(np.float32)


def _other_side(names: Sequence[str]) -> list[int]:
    """The place of each name's counterpart on the other side of the body."""
    swap = {".L": ".R", ".R": ".L"}
    return [names.index(name[:-2] + swap[name[-2:]] if name[-2:] in swap else name) for name in names]
