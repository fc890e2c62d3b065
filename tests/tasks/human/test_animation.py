"""Animations of people: what the files say, read by other code, is what the body says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.errors import UserError
from dune_cli.geometry.poses import rotation_angle, rotation_from_rotvec, rotvec_from_rotation
from dune_cli.io.animation import AnimationData, SkinnedMotion
from dune_cli.io.formats import bvh, glb
from dune_cli.tasks.human.animation import AnimationOptions, MotionSmoothing, PoseSample, mean_shape, motion_of
from support.animations import Gltf, read_bvh
from support.anny_poses import posed_people

FLIP = np.array([1, -1, -1])
FRAMES = (0, 1, 2, 5, 6)  # two frames without the person
BODY = load_anny("light")
SKELETON = AnnySkeleton(BODY, shifted=False)
PEOPLE = posed_people(SKELETON, len(FRAMES), seed=3)
ROTATIONS = SKELETON.body_rotations(PEOPLE.rotations, SKELETON.offsets(PEOPLE.shape))


def samples() -> list[PoseSample]:
    return [
        PoseSample(frame, frame / 10, rotvec_from_rotation(ROTATIONS[k]), PEOPLE.translation[k], PEOPLE.shape[0], 0.9)
        for k, frame in enumerate(FRAMES)
    ]


@pytest.fixture(scope="module")
def motion() -> SkinnedMotion:
    return motion_of(BODY, 7, samples())


def anny(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints of the body's own forward, in glTF's axes."""
    out = BODY(torch.from_numpy(ROTATIONS[k : k + 1]).float(), torch.from_numpy(PEOPLE.shape[:1]).float())
    return tuple((part[0].double().numpy() + PEOPLE.translation[k]) * FLIP for part in (out.vertices, out.joints))


def test_the_glb_skinned_by_other_code_is_the_body(motion: SkinnedMotion, tmp_path: Path) -> None:
    """With 4 of up to 9 influences: mean below 0.15 mm, 97 % of the vertices within 1 mm, all within 2 cm.
    Measured on these poses: mean 0.09 mm, 99 % within 2.3 mm, the largest 17 mm (between trunk and thighs)."""
    glb.write_animation(tmp_path / "a.glb", AnimationData([motion]))
    file = Gltf(tmp_path / "a.glb")
    (node,) = [k for k, one in enumerate(file.json["nodes"]) if "skin" in one]
    for k, frame in enumerate(FRAMES):
        vertices, _ = anny(k)
        apart = np.linalg.norm(file.skinned(node, frame / 10) - vertices, axis=1)
        assert apart.mean() < 1.5e-4 and np.quantile(apart, 0.97) < 1e-3 and apart.max() < 0.02


def test_with_all_influences_it_is_the_body_exactly(motion: SkinnedMotion) -> None:
    for k in range(len(FRAMES)):
        turned, placed = [motion.rotations[k, 0]], [motion.translation[k]]
        for joint, parent in enumerate(motion.parents[1:], start=1):
            placed.append(placed[parent] + turned[parent] @ motion.offsets[joint])
            turned.append(turned[parent] @ motion.rotations[k, joint])
        turned, placed = np.array(turned), np.array(placed)
        shift = placed - (turned @ motion.joints[..., None])[..., 0]
        blended = np.einsum("vj,jab->vab", motion.weights, turned)
        vertices = (blended @ motion.vertices[..., None])[..., 0] + motion.weights @ shift
        wanted, joints = anny(k)
        assert np.abs(vertices * FLIP - wanted).max() < 1e-5 and np.abs(placed * FLIP - joints).max() < 1e-5


def test_the_glb_obeys_gltf(motion: SkinnedMotion, tmp_path: Path) -> None:
    glb.write_animation(tmp_path / "a.glb", AnimationData([motion]))
    file = Gltf(tmp_path / "a.glb")
    (node,) = [one for one in file.json["nodes"] if "skin" in one]
    (skin,), (animation,) = file.json["skins"], file.json["animations"]
    attributes = file.json["meshes"][node["mesh"]]["primitives"][0]["attributes"]
    joints, weights = file.array(attributes["JOINTS_0"]), file.array(attributes["WEIGHTS_0"])
    assert joints.max() < len(skin["joints"]) and (weights >= 0).all()
    assert np.abs(weights.astype(float).sum(1) - 1).max() < 1e-6 and not joints[weights == 0].any()
    assert np.abs(np.linalg.norm(file.array(attributes["NORMAL"]), axis=1) - 1).max() < 1e-5
    assert skin["skeleton"] == skin["joints"][0] in file.json["scenes"][0]["nodes"]
    children = [child for one in file.json["nodes"] for child in one.get("children", [])]
    assert sorted([skin["joints"][0], *children]) == skin["joints"]
    paths = [channel["target"]["path"] for channel in animation["channels"]]
    assert paths.count("translation") == 1 and paths.count("rotation") > 20
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times, values = file.array(sampler["input"])[:, 0], file.array(sampler["output"])
        assert (np.diff(times) > 0).all() and len(values) == len(times) == len(FRAMES) + 1
        if channel["target"]["path"] == "rotation":
            assert np.abs(np.linalg.norm(values, axis=1) - 1).max() < 1e-6
            assert ((values[1:] * values[:-1]).sum(1) >= 0).all()
    assert node["extras"]["person"] == 7 and node["extras"]["seen_s"] == [0, 0.6]
    assert node["extras"]["not_seen_s"] == [[0.2, 0.5]]


def test_a_gap_holds_the_last_pose(motion: SkinnedMotion, tmp_path: Path) -> None:
    glb.write_animation(tmp_path / "a.glb", AnimationData([motion]))
    file = Gltf(tmp_path / "a.glb")
    (node,) = [k for k, one in enumerate(file.json["nodes"]) if "skin" in one]
    last = file.skinned(node, 0.2)
    for time_s in (0.3, 0.4, 0.498):
        assert np.abs(file.skinned(node, time_s) - last).max() < 1e-6


def test_trimesh_reads_the_glb(motion: SkinnedMotion, tmp_path: Path) -> None:
    glb.write_animation(tmp_path / "a.glb", AnimationData([motion]))
    (mesh,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    assert mesh.vertices.shape == (13718, 3) and np.abs(mesh.vertices - motion.vertices * FLIP).max() < 1e-6
    assert np.ptp(mesh.vertices[:, 1]) > 1.5  # upright


def test_the_bvh_read_by_other_code_has_the_joints(motion: SkinnedMotion, tmp_path: Path) -> None:
    (path,) = bvh.write_animation(tmp_path / "a.bvh", AnimationData([motion]))
    file = read_bvh(path)
    assert file.frame_time_s == pytest.approx(0.1) and len(file.values) == FRAMES[-1] + 1
    assert [channel for _, channel in file.channels[:6]] == [
        *("Xposition", "Yposition", "Zposition"),
        *("Zrotation", "Xrotation", "Yrotation"),
    ]
    for frame, k in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4)):  # 3 and 4 are held
        _, joints = anny(k)
        places = file.positions(frame)
        apart = [np.linalg.norm(places[name] - joint) for name, joint in zip(BODY.joint_names, joints)]
        assert max(apart) < 1e-3
    assert max(np.linalg.norm(offset) for offset in file.offsets) < 0.6  # metres


def test_bvh_of_several_people_are_several_files(motion: SkinnedMotion, tmp_path: Path) -> None:
    other = motion_of(BODY, 12, samples()[:1])
    files = bvh.write_animation(tmp_path / "a.bvh", AnimationData([motion, other]))
    assert [file.name for file in files] == ["a_007.bvh", "a_012.bvh"]
    assert len(read_bvh(files[1]).values) == 1
    assert bvh.write_animation(tmp_path / "b.bvh", AnimationData([])) == [] and not (tmp_path / "b.bvh").exists()


def test_the_shape_is_that_of_confident_frames() -> None:
    poses = [PoseSample(k, k, np.zeros((104, 3)), np.zeros(3), np.full(6, k / 10), 0.2 * k) for k in range(5)]
    shape, count = mean_shape(poses)
    assert count == 2 and shape == pytest.approx(0.35)
    assert mean_shape(poses[:2])[1] == 2  # none is confident: all


def test_smoothing_takes_out_jitter() -> None:
    """A body that turns about and walks, with noise in all angles and in its distance."""
    rng = np.random.default_rng(2)
    times = np.arange(60) / 25
    turn = np.stack([0 * times, 3 * times, 0 * times], 1)  # more than a whole turn
    upright = BODY.upright.double().numpy()
    root = rotation_from_rotvec(turn) @ upright
    walk = np.stack([times, 0 * times, 4 + 0.2 * np.sin(times)], 1)

    def of(noise: float) -> SkinnedMotion:
        rotations = np.tile(np.eye(3), (60, 104, 1, 1))
        rotations[:, 0] = root
        rotations = rotations @ rotation_from_rotvec(rng.normal(size=(60, 104, 3)) * noise)
        moved = walk + rng.normal(size=(60, 3)) * noise * [0.2, 0.2, 1.5]
        return motion_of(
            BODY,
            0,
            [
                PoseSample(k, times[k], rotvec_from_rotation(rotations[k]), moved[k], PEOPLE.shape[0], 1.0)
                for k in range(60)
            ],
        )

    truth, noisy = of(0.0), of(0.1)
    smoothed = MotionSmoothing().smooth(noisy)

    def wrong(motion: SkinnedMotion) -> tuple[float, float]:
        turned = rotation_angle(truth.rotations.transpose(0, 1, 3, 2) @ motion.rotations)
        return float(turned.mean()), float(np.abs(motion.translation - truth.translation).mean())

    before, after = wrong(noisy), wrong(smoothed)
    assert after[0] < 0.6 * before[0] and after[1] < 0.6 * before[1]


def test_which_person() -> None:
    seen = {0: 3, 2: 9, 5: 9}
    assert AnimationOptions().choose(seen) == [0, 2, 5]
    assert AnimationOptions("longest").choose(seen) == [2]
    assert AnimationOptions("5").choose(seen) == [5]
    with pytest.raises(UserError, match=r"--person 1 is not in the clip, whose people are 0, 2, 5; name one"):
        AnimationOptions("1").choose(seen)
    with pytest.raises(UserError, match=r"--person 'tall' is not known; allowed: all, longest, or the number"):
        AnimationOptions("tall")
