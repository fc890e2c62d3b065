"""Linear read-out of teachers: how much of a teacher's patch tokens a linear map finds in frozen features.

Ridge regression from a source's patch tokens to a teacher's, cross-validated over photos. It needs no projector, so it
compares encoders that were distilled from other teachers, random networks and raw pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dune_cli.errors import UserError
from dune_cli.evaluation.features import FOLDS, FeatureSource, load_crops
from dune_cli.teachers.teacher import PATCH, Teacher
from dune_cli.training.distill.teacher_outputs import token_weights

RIDGE = 1e-3  # of the mean square of the features


@dataclass
class _Moments:
    """Second moments of one fold's tokens: of features and a 1 (D+1), of features and targets, and of targets."""

    features: torch.Tensor  # (D+1, D+1)
    cross: torch.Tensor  # (D+1, E)
    targets: torch.Tensor  # (E,) sum of squares

    @classmethod
    def of(cls, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> _Moments:
        """Of features (N, D), targets (N, E) and weights (N) or None: all count."""
        x = torch.cat([features, features.new_ones(len(features), 1)], 1).double()
        y = targets.double()
        weighted = x if weights is None else x * weights.double()[:, None]
        squares = y.square() if weights is None else y.square() * weights.double()[:, None]
        return cls(weighted.T @ x, weighted.T @ y, squares.sum(0))

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.features + other.features, self.cross + other.cross, self.targets + other.targets)

    def solve(self) -> torch.Tensor:
        """(D+1, E) the ridge solution; its constant is not penalised."""
        count = self.features[-1, -1].clamp(min=1)
        penalty = RIDGE * self.features.diagonal()[:-1].mean() / count
        penalties = torch.cat([penalty.expand(len(self.features) - 1), penalty.new_zeros(1)])
        return torch.linalg.solve(self.features / count + torch.diag(penalties), self.cross / count)

    def error(self, weights: torch.Tensor) -> torch.Tensor:
        """The sum of squared errors of the prediction by `weights` (D+1, E) on these tokens."""
        fitted = (weights * (self.features @ weights)).sum() - 2 * (weights * self.cross).sum()
        return self.targets.sum() + fitted


@torch.inference_mode()
def linear_readout(
    sources: Sequence[FeatureSource],
    teachers: Mapping[str, Teacher],
    paths: Sequence[Path],
    size_px: int,
    batch_size: int,
) -> dict[str, list[float]]:
    """Teacher -> for each source, the share of the variance of the teacher's patch tokens that is predicted (R²).

    Photos are cropped as for all features. Photo i is in fold i modulo 5; each fold is predicted by a map fitted to
    the others. A constant scores 0. Tokens that a teacher's gate shuts out do not count; NaN where it shuts out all of
    a fold. UserError for fewer photos than folds.
    """
    if len(paths) < FOLDS:
        raise UserError(f"{len(paths)} photos are too few for a read-out over {FOLDS} folds; give at least {FOLDS}")
    moments: dict[tuple[int, str, int], _Moments] = {}
    for cell_px in sorted({source.cell_px for source in sources}):
        columns = [column for column, source in enumerate(sources) if source.cell_px == cell_px]
        for fold in range(FOLDS):
            of_fold = list(paths[fold::FOLDS])
            for first in range(0, len(of_fold), batch_size):
                images = load_crops(of_fold[first : first + batch_size], size_px, cell_px)
                grid = (images.shape[-2] // cell_px, images.shape[-1] // cell_px)
                outputs = {name: teacher(images, grid) for name, teacher in teachers.items()}
                for column in columns:
                    features = sources[column].encode(images).patches.flatten(0, 2)
                    for name, types in outputs.items():
                        valid = token_weights(types, PATCH)
                        weights = None if valid is None else valid.flatten().cpu()
                        found = _Moments.of(features, types[PATCH].flatten(0, 1).cpu(), weights)
                        key = (column, name, fold)
                        moments[key] = moments[key] + found if key in moments else found
    return {
        name: [_explained([moments[column, name, fold] for fold in range(FOLDS)]) for column in range(len(sources))]
        for name in teachers
    }


def _explained(folds: Sequence[_Moments]) -> float:
    """1 - squared error / squared distance to the mean of the other folds, over all folds."""
    error, total = 0.0, 0.0
    for fold in folds:
        others = [other for other in folds if other is not fold]
        train = sum(others[1:], others[0])
        if train.features[-1, -1] <= 0 or fold.features[-1, -1] <= 0:
            return float("nan")
        mean = torch.zeros_like(train.cross)
        mean[-1] = train.cross[-1] / train.features[-1, -1]
        error += float(fold.error(train.solve()))
        total += float(fold.error(mean))
    return 1 - error / total if total > 0 else float("nan")
