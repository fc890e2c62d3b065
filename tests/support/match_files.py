"""A small dune-mini with the open stems, a head on it, and a few photos of made-up scenes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from dune_cli.checkpoints.third_party import begin_match_head, fill_stem
from dune_cli.io.photos import read_photo
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.training.common.export import write_weights
from dune_cli.training.distill.finalize import student_weights
from dune_cli.training.distill.students import Student

CONFIG = MatchHeadConfig(long_side_px=256, context_px=128, max_keypoints=256)


def small_encoder() -> MiniEncoder:
    """Of the stem xfeat+lite with its open weights (mark the test `weights("efficientnet-lite2")`)."""
    torch.manual_seed(0)
    mini = MiniEncoder(MiniConfig(depth=1, hidden=64, parts=("xfeat", "lite")))
    fill_stem(mini.stem)
    return mini.eval()


def write_encoder(path: Path, encoder: MiniEncoder) -> Path:
    """Its file."""
    write_weights(path, *student_weights(Student(encoder, {}, "tp", 0), nn.ModuleDict(), "none"))
    return path


def begun_head(config: MatchHeadConfig = CONFIG) -> MatchHead:
    """XFeat + LighterGlue as a head."""
    return begin_match_head(config, 0)[0].eval()


def write_scene(folder: Path, photo: Path, count: int) -> Path:
    """`count` photos of one scene: a plane seen from several sides."""
    folder.mkdir(parents=True)
    rgb = read_photo(photo).rgb
    for index in range(count):
        H = np.array([[1 - 0.05 * index, 0.04 * index, 6.0 * index], [-0.03 * index, 1, 4], [5e-5 * index, 0, 1]])
        moved = cv2.warpPerspective(rgb, H, (rgb.shape[1], rgb.shape[0]))
        cv2.imwrite(str(folder / f"{index:04d}.png"), moved[::2, ::2, ::-1])
    return folder
