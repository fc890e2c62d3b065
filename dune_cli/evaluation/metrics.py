"""The measures of evaluations."""

from __future__ import annotations

from dune_cli.geometry.pose_auc import pose_auc

__all__ = ["pose_auc"]
