"""Multi-HMR files in the official layouts, with deterministic weights: the fixtures' own, and small ones."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.bodies.smplx import JOINTS, PARENTS
from dune_cli.models.multihmr_anny import sine_positions
from support.published_files import Fixture, make_image, make_state_dict, vit_manifest

SMPLX, ANNY = "multihmr_vits14_224", "multihmr_anny_vits14_224"
SMPLX_THRESHOLD_SLACK, ANNY_THRESHOLD_SLACK = 5e-4, 2e-3


def human_state(name: str) -> dict[str, torch.Tensor]:
    """The fixture's state dict, its constant keys with their true values."""
    fixture = Fixture(name)
    state = make_state_dict(fixture.manifest, fixture.config["seed"])
    return state | anny_constants(state, fixture.config["useful_rotmat"]) if name == ANNY else state


def human_image(name: str, seed: int | None = None) -> torch.Tensor:
    """(1, 3, S, S) in [0, 1]."""
    config = Fixture(name).config
    size = config["args"]["img_size"]
    return make_image([1, 3, size, size], config["image_seed"] if seed is None else seed)


def min_score(name: str) -> float:
    """The fixture's threshold is its lowest detected score: a little lower, as docs/models/multihmr.md says."""
    slack = ANNY_THRESHOLD_SLACK if name == ANNY else SMPLX_THRESHOLD_SLACK
    return Fixture(name).config["det_thresh"] - slack


def anny_constants(state: dict[str, torch.Tensor], useful: list[int]) -> dict[str, torch.Tensor]:
    """The keys that hold the same values in every file on Anny (docs/models/multihmr.md, B, "Constant keys")."""
    cells = round(len(state["dec_pos_emb"]) ** 0.5)
    pose = torch.tensor([1.0, 0, 0, 1, 0, 0]).repeat(len(useful), 1)
    pose[0] = torch.tensor([1.0, 0, 0, 0, 0, 1])
    return {
        "dec_pos_emb": sine_positions(cells, state["dec_pos_emb"].shape[1]),
        "encoder.fov_max": torch.tensor([torch.pi]),
        "eye": torch.eye(3)[None],
        "init_body_pose": pose.reshape(1, -1),
        "useful_rotmat": torch.tensor([useful], dtype=torch.float32),
    }


def official_tree(name: str, state: dict[str, torch.Tensor], **arguments: Any) -> dict[str, Any]:
    """What Multi-HMR's training saves; A states its image size as a list, B as a number."""
    given = Fixture(name).config["args"] | arguments
    if name == SMPLX and "img_size" not in arguments:
        given["img_size"] = [given["img_size"]] * 2
    args = Namespace(**given, lr=1e-5, save_dir=Path("/somewhere/else"), schedule=np.linspace(0, 1, 4))
    return {"epoch": 12, "iter": 345_678, "args": args, "model_state_dict": state}


def write_human(path: Path, name: str, **arguments: Any) -> Path:
    """The fixture's weights as an official file."""
    torch.save(official_tree(name, human_state(name), **arguments), path)
    return path


def manifest_of(name: str, width: int, cells: int, depth: int, layers: int) -> dict[str, list[int]]:
    """Keys and shapes of a file of other sizes than the fixture's: a ViT of `width`, `layers` person layers, cells x
    cells."""
    fixture = Fixture(name)
    context = width + 99
    sides = {384: width, 256: cells * cells, 16: cells, 483: context, 814: context + 331}
    backbone = "encoder.backbone." if name == ANNY else "backbone.encoder."
    layer = "decoder.transformer.layers." if name == ANNY else "x_attention_head.transformer.transformer.layers."
    kept = {k: list(s) for k, s in fixture.manifest.items() if not k.startswith((backbone, layer))}
    manifest = {k: [sides.get(side, side) for side in shape] for k, shape in kept.items()}
    manifest |= {backbone + key: shape for key, shape in vit_manifest(width, depth, 37, 0).items()}
    for index in range(layers):
        for key, shape in fixture.manifest.items():
            if key.startswith(f"{layer}0."):
                manifest[f"{layer}{index}.{key[len(layer) + 2 :]}"] = [
                    context if side == 483 else side for side in shape
                ]
    return manifest


def small_state(name: str, cells: int = 8, depth: int = 2, layers: int = 3, seed: int = 7) -> dict[str, torch.Tensor]:
    """Weights of a small network: a ViT of width 128."""
    fixture = Fixture(name)
    state = make_state_dict(manifest_of(name, 128, cells, depth, layers), seed)
    return state | anny_constants(state, fixture.config["useful_rotmat"]) if name == ANNY else state


def write_small(path: Path, name: str, **sizes: int) -> Path:
    """An official file of a small network: quick, and of other sizes than the fixture."""
    state = small_state(name, **sizes)
    size = 14 * sizes.get("cells", 8)
    arguments = {"img_size": size if name == ANNY else [size]}
    torch.save(official_tree(name, state, xat_depth=sizes.get("layers", 3), **arguments), path)
    return path


def write_smplx(folder: Path, seed: int = 5) -> Path:
    """A made-up body in the layout of SMPLX_NEUTRAL.npz: a tetrahedron about each joint, upright in the T-pose (y up),
    with made-up shape, expression and pose directions. Returns the folder that `--body-models` takes."""
    rng = np.random.default_rng(seed)
    joints = np.zeros((len(JOINTS), 3))
    for joint, parent in enumerate(PARENTS):
        if joint:
            joints[joint] = joints[parent] + _bone(JOINTS[joint])
    corners = 0.03 * np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
    vertices = (joints[:, None] + corners).reshape(-1, 3)
    owner = np.repeat(np.arange(len(joints)), 4)
    weights = np.zeros((len(vertices), len(joints)))
    weights[np.arange(len(vertices)), owner] = 1
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    arrays = {
        "v_template": vertices,
        "f": (np.arange(len(joints))[:, None, None] * 4 + faces).reshape(-1, 3).astype(np.uint32),
        "shapedirs": rng.normal(0, 2e-3, (len(vertices), 3, 400)),
        "posedirs": rng.normal(0, 1e-4, (len(vertices), 3, 9 * 54)),
        "J_regressor": weights.T / 4,
        "weights": weights,
        "kintree_table": np.stack([[2**32 - 1, *PARENTS[1:]], range(len(PARENTS))]).astype(np.uint32),
    }
    (folder / "smplx").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "smplx" / "SMPLX_NEUTRAL.npz", **arrays)
    return folder


def _bone(name: str) -> np.ndarray:
    """From a joint's parent to it, metres: x to the body's left, y up, z forward."""
    left = -1 if name.startswith("right") else 1
    lengths = {
        "hip": (0.1 * left, -0.08, 0),
        "knee": (0, -0.4, 0),
        "ankle": (0, -0.42, 0),
        "foot": (0, -0.05, 0.12),
        "collar": (0.06 * left, 0.1, 0),
        "shoulder": (0.12 * left, 0, 0),
        "elbow": (0.27 * left, 0, 0),
        "wrist": (0.25 * left, 0, 0),
        "jaw": (0, -0.02, 0.05),
        "eye": (0.03 * left, 0.05, 0.08),
    }
    found = next((bone for word, bone in lengths.items() if word in name), None)
    if found is None:
        found = (0.03 * left, 0, 0) if name.startswith(("left", "right")) else (0, 0.12, 0)
    return np.array(found)


def write_placed(path: Path, name: str, depth_control: float, cells: int = 16) -> Path:
    """An official file that sees a body in its rest pose, upright and facing the camera, wherever a cell is bright.

    Its ViT passes on each cell's brightness, everything else is a constant. `depth_control`: cam[0] of SMPL-X's head
    (z = exp(depth_control · f / f60)), the output of mlp_dist of Anny's (z = f / exp(depth_control)).
    """
    anny = name == ANNY
    state = {key: torch.zeros_like(value) for key, value in small_state(name, cells, 1, 1).items()}
    backbone, score = ("encoder.backbone.", "encoder.mlp_det") if anny else ("backbone.encoder.", "mlp_classif")
    state |= {key: torch.ones_like(state[key]) for key in state if key.endswith(("norm.weight", "norm1.weight"))}
    state[f"{backbone}patch_embed.proj.weight"][0] = 10 / 588
    state[f"{backbone}patch_embed.proj.bias"][1] = 1
    state[f"{score}.0.weight"][0, 0] = 1
    state[f"{score}.2.weight"][0, 0] = 1
    state[f"{score}.2.bias"][0] = -5
    if anny:
        state |= anny_constants(state, Fixture(name).config["useful_rotmat"])
        state["mlp_dist.2.bias"][0] = depth_control
    else:
        pose = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(53, 1)
        pose[0] = torch.tensor([1.0, 0, 0, 0, -1, 0])
        state["x_attention_head.init_body_pose"] = pose.reshape(1, -1)
        state["x_attention_head.init_cam"][0, 0] = depth_control
    size = 14 * cells
    torch.save(official_tree(name, state, xat_depth=1, img_size=size if anny else [size]), path)
    return path
