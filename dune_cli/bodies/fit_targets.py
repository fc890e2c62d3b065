"""What a body is fitted to: the joints of P people, in pixels, in 3-D, or both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.skeleton import INDEX, LANDMARKS

TORSO = tuple(INDEX[name] for name in ("left_shoulder", "right_shoulder", "left_hip", "right_hip"))
ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M = 1.70, 0.09  # of adults, women and men together


@dataclass(frozen=True)
class FitTargets:
    """Joints of P people, by LANDMARKS; what is not known has weight 0 and any number.

    K (3, 3): the photo's camera, or (P, 3, 3): that of each person's photo. pixels (P, M, 2), pixel_weights (P, M) from
    0 to 1: in the photo; both, or neither. points (P, M, 3), point_weights (P, M) from 0 to 1: in 3-D, in the camera's
    axes. metric: these are positions in metres in the camera's frame; otherwise only their directions from each other
    count. stature, stature_sd (P,): standing height in metres, and how sure it is.
    """

    stature: np.ndarray
    stature_sd: np.ndarray
    K: np.ndarray | None = None
    pixels: np.ndarray | None = None
    pixel_weights: np.ndarray | None = None
    points: np.ndarray | None = None
    point_weights: np.ndarray | None = None
    metric: bool = False

    def __post_init__(self) -> None:
        people = len(self.stature)
        sizes = {
            "stature_sd": (people,),
            "K": (3, 3) if self.K is None or self.K.ndim == 2 else (people, 3, 3),
            "pixels": (people, len(LANDMARKS), 2),
            "pixel_weights": (people, len(LANDMARKS)),
            "points": (people, len(LANDMARKS), 3),
            "point_weights": (people, len(LANDMARKS)),
        }
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None and value.shape != size:
                raise ValueError(f"{name} must be {size}, received {value.shape}")
        pairs = ((self.pixels, self.pixel_weights), (self.pixels, self.K), (self.points, self.point_weights))
        if any((one is None) != (other is None) for one, other in pairs):
            raise ValueError("pixels go with pixel_weights and K, points with point_weights")
        if self.pixels is None and not (self.points is not None and self.metric):
            raise ValueError("a body is placed by pixels or by metric points, and neither was given")

    def __len__(self) -> int:
        return len(self.stature)

    def __getitem__(self, chosen: np.ndarray) -> FitTargets:
        """Some of the people."""
        K = self.K if self.K is None or self.K.ndim == 2 else self.K[chosen]
        by_person = {
            name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray) and name != "K"
        }
        return FitTargets(**by_person, K=K, metric=self.metric)

    def size_px(self) -> np.ndarray:
        """(P,): the longer of the torso and the shoulders' width, at least 1; without them a part of the extent."""
        pixels, weights = self.pixels, self.pixel_weights
        assert pixels is not None and weights is not None, "sizes in pixels need pixels"
        left, right, left_hip, right_hip = (pixels[:, number] for number in TORSO)
        torso = np.linalg.norm((left + right - left_hip - right_hip) / 2, axis=-1)
        size = np.maximum(torso, np.linalg.norm(left - right, axis=-1))
        known = (weights[:, TORSO] > 0).all(1)
        seen = np.where(weights[..., None] > 0, pixels, np.nan)
        low, high = np.nan_to_num(_extremes(seen, np.fmin)), np.nan_to_num(_extremes(seen, np.fmax))
        return np.maximum(np.where(known, size, 0.4 * (high - low).max(-1)), 1.0)


def _extremes(values: np.ndarray, of: np.ufunc) -> np.ndarray:
    return of.reduce(values, axis=1)
