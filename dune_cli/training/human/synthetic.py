"""Made-up pictures of people: posed bodies with painted clothes before photos, partly covered, with known bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.fit_targets import ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M
from dune_cli.bodies.pose_sampling import mirrored, sample_directions, sample_poses
from dune_cli.bodies.skeleton import FREE_JOINTS, AnnySkeleton
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.io.photos import read_photo
from dune_cli.io.rendering import rasterise, shade, vertex_normals
from dune_cli.training.human.people import KEYPOINTS, LabelledPeople

MOST_BODIES = 4
FOV_DEG = (35.0, 75.0)
BODY_SHARE = (0.15, 1.6)  # of the picture's side that a standing body takes
FROM_FITS, TURNED_FIT = 0.6, 0.5  # shares of poses out of photos, and of those that look another way
JITTER_RAD = 0.12  # of joints of poses out of photos
COVER = 0.4  # how often a piece of another photo covers a part of somebody
VISIBLE, DOUBTFUL = 0.4, 0.02  # shares of a body's pixels from which it is learned, and below which nobody is there
FINE = 2  # samples along a pixel's side
# parts of the body that are painted alike, by the joint that moves them most
_PARTS = {
    "feet": ("foot", "toe"),
    "legs": ("lowerleg",),
    "thighs": ("upperleg", "pelvis", "root"),
    "trunk": ("spine", "clavicle", "shoulder"),
    "upper arms": ("upperarm",),
    "forearms": ("lowerarm",),
    "skin": ("wrist", "finger", "metacarpal", "neck", "head", "eye"),
}
_SKIN = np.array([[92, 58, 40], [141, 96, 68], [198, 150, 118], [224, 182, 152], [241, 209, 184]], float)
_HAIR = np.array([[25, 20, 18], [60, 40, 28], [120, 82, 45], [190, 160, 100], [130, 130, 130]], float)


@dataclass(frozen=True)
class PoseBank:
    """Poses of trusted people in photos, rotations (N, F, 3, 3) of FREE_JOINTS; and photos without people."""

    rotations: np.ndarray
    backgrounds: tuple[Path, ...]


@dataclass(frozen=True)
class MadePicture:
    """rgb (S, S, 3) uint8 and the people in it."""

    rgb: np.ndarray
    people: LabelledPeople


class PictureMaker:
    """Draws pictures of `size_px`; picture `number` is a function of seed, number and bank alone."""

    def __init__(self, body: Anny, bank: PoseBank, size_px: int, seed: int) -> None:
        self.body, self.bank, self.size_px, self.seed = body, bank, size_px, seed
        self.skeleton = AnnySkeleton(body, shifted=False)
        self._surface = body.surface.numpy()
        self._faces = body.surface_faces().numpy()
        self._parts, self._hair = _paintable(body)
        self._height_numbers = np.linspace(0, 1, 9)
        adults = np.tile(self.skeleton.mean_shape, (len(self._height_numbers), 1))
        adults[:, body.shape_names.index("height")] = self._height_numbers
        self._statures = self.skeleton.offsets(adults).stature

    def make(self, number: int) -> MadePicture:
        """A picture with 1 to MOST_BODIES bodies."""
        rng = np.random.default_rng([self.seed, 7, number])
        size = self.size_px
        focal_px = size / 2 / np.tan(np.radians(rng.uniform(*FOV_DEG)) / 2)
        K = np.array([[focal_px, 0, size / 2], [0, focal_px, size / 2], [0, 0, 1.0]])
        count = int(rng.choice(MOST_BODIES, p=[0.5, 0.25, 0.15, 0.1])) + 1
        people, vertices = self._bodies(count, K, rng)
        picture = self._background(rng).astype(np.float32)
        owner = self._draw(picture, vertices, K, rng)
        self._cover(picture, owner, people, rng)
        if rng.random() < 0.1:
            picture[:] = picture.mean(-1, keepdims=True)
        rgb = np.rint(picture.clip(0, 255)).astype(np.uint8)
        return MadePicture(rgb, self._seen(people, owner, vertices, K))

    def _bodies(self, count: int, K: np.ndarray, rng: np.random.Generator) -> tuple[LabelledPeople, np.ndarray]:
        """Bodies before the camera: people and their surfaces (P, V, 3)."""
        shape = np.tile(self.skeleton.mean_shape, (count, 1))
        stature = rng.normal(ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M, count)
        shape[:, self.body.shape_names.index("height")] = np.interp(stature, self._statures, self._height_numbers)
        shape[:, self.body.shape_names.index("gender")] = rng.uniform(0, 1, count)
        for name in ("muscle", "weight", "proportions"):
            shape[:, self.body.shape_names.index(name)] = np.clip(rng.normal(0.5, 0.2, count), 0, 1)
        offsets = self.skeleton.offsets(shape)
        sampled = sample_poses(self.skeleton, shape, rng)
        full = self.skeleton.body_rotations(sampled, offsets)
        if len(self.bank.rotations):
            chosen = np.flatnonzero(rng.random(count) < FROM_FITS)
            full[np.ix_(chosen, self.skeleton.free)] = self._from_fits(len(chosen), rng)
        with torch.inference_mode():
            posed = self.body(torch.from_numpy(full).float(), torch.from_numpy(shape).float())
        joints, surface = posed.joints.double().numpy(), posed.vertices.double().numpy()[:, self._surface]
        share = np.exp(rng.uniform(*np.log(BODY_SHARE), count))
        depth = K[0, 0] * offsets.stature / (share * self.size_px)
        head_px = rng.uniform(0.03, 0.97, (count, 2)) * self.size_px
        head_px[:, 1] *= np.where(share > 0.5, 0.6, 1.0)  # large people reach down to the border
        head = np.concatenate([head_px, np.ones((count, 1))], 1) @ np.linalg.inv(K).T * depth[:, None]
        people = LabelledPeople(
            K=K.astype(np.float32),
            rotations=full[:, self.skeleton.free].astype(np.float32),
            shape=shape.astype(np.float32),
            head=head.astype(np.float32),
            turn_weights=np.ones((count, len(FREE_JOINTS)), np.float32),
            place_weights=np.ones((count, len(KEYPOINTS)), np.float32),
            boxes=np.zeros((count, 4), np.float32),
            trusted=np.ones(count, bool),
        )
        return people, surface + (head - joints[:, self.body.head])[:, None]

    def _from_fits(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Poses out of photos (count, F, 3, 3), mirrored and turned by chance, and moved a little."""
        poses = self.bank.rotations[rng.integers(0, len(self.bank.rotations), count)].astype(np.float64)
        flip = rng.random(count) < 0.5
        poses[flip] = mirrored(poses[flip])
        poses = poses @ rotation_from_rotvec(rng.normal(size=(count, len(FREE_JOINTS), 3)) * JITTER_RAD)
        turned = sample_directions(count, rng)
        away = rng.random(count) < TURNED_FIT
        poses[away, 0] = turned[away] @ poses[away, 0]
        return poses

    # --- picture ---

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """(S, S, 3): a part of a photo without people; without photos, noise of a few frequencies."""
        from PIL import Image

        size = self.size_px
        if self.bank.backgrounds:
            rgb = read_photo(self.bank.backgrounds[int(rng.integers(len(self.bank.backgrounds)))]).rgb
            side = int(min(rgb.shape[:2]) * rng.uniform(0.4, 1))
            left, top = (int(rng.integers(0, s - side + 1)) for s in (rgb.shape[1], rgb.shape[0]))
            part = Image.fromarray(rgb[top : top + side, left : left + side])
            part = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))
            return part[:, ::-1] if rng.random() < 0.5 else part
        cells = Image.fromarray(rng.integers(0, 256, (int(rng.integers(2, 12)),) * 2 + (3,), dtype=np.uint8))
        return np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC))

    def _draw(self, picture: np.ndarray, vertices: np.ndarray, K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws the bodies into the picture. Returns (S, S): the number of the body at each pixel's centre, or -1."""
        count, size = len(vertices), self.size_px
        points = vertices.reshape(-1, 3)
        faces = np.concatenate([self._faces + number * vertices.shape[1] for number in range(count)])
        colors = np.concatenate([self._paint(rng) for _ in range(count)])
        fine = np.array([[FINE, 0, -0.5], [0, FINE, -0.5], [0, 0, 1.0]]) @ K  # pixel centres at integers
        raster = rasterise(points, faces, fine, FINE * size, FINE * size)
        light = rng.normal(size=3) * [1, 0.6, 0.6] + [0, -0.8, -0.8]
        layer = np.zeros((FINE * size, FINE * size, 4), np.float32)
        lit = shade(raster, vertex_normals(points, faces), colors, faces, light / np.linalg.norm(light))
        layer[raster.covered, :3] = lit * rng.uniform(0.7, 1.3) * np.exp(rng.normal(0, 0.06, 3))
        layer[..., 3] = raster.covered
        layer = layer.reshape(size, FINE, size, FINE, 4).mean((1, 3))
        picture *= 1 - layer[..., 3:]
        picture += layer[..., :3]
        picture += rng.normal(0, rng.uniform(0, 6), picture.shape)
        body_of = np.where(raster.covered, raster.face_index // len(self._faces), -1)
        return body_of[FINE // 2 :: FINE, FINE // 2 :: FINE].copy()

    def _paint(self, rng: np.random.Generator) -> np.ndarray:
        """(V, 3): colours of a body's surface: skin, hair, and clothes with stripes or checks or none."""
        skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.85, 1.15)
        top, bottom, shoes = (_cloth(rng) for _ in range(3))
        bottom = top if rng.random() < 0.15 else bottom
        of_part = {
            "feet": skin if rng.random() < 0.15 else shoes,
            "legs": skin if rng.random() < 0.35 else bottom,
            "thighs": bottom,
            "trunk": skin if rng.random() < 0.05 else top,
            "upper arms": skin if rng.random() < 0.25 else top,
            "forearms": skin if rng.random() < 0.55 else top,
            "skin": skin,
        }
        colors = np.stack([of_part[name] for name in _PARTS])[self._parts]
        clothed = self._parts != list(_PARTS).index("skin")
        pattern = rng.random()
        if pattern < 0.4:
            rest = self._rest_places()
            waves = np.sin(rest @ rng.normal(size=(3, 2 if pattern < 0.2 else 1)) * rng.uniform(20, 90)).prod(1)
            colors[clothed] += (np.sign(waves) * rng.uniform(10, 70))[clothed, None]
        colors[self._hair] = _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.8, 1.2)
        return (colors + rng.normal(0, 4, colors.shape)).clip(0, 255)

    def _rest_places(self) -> np.ndarray:
        return self.body.vertex_template.numpy()[self._surface]

    def _cover(self, picture: np.ndarray, owner: np.ndarray, people: LabelledPeople, rng: np.random.Generator) -> None:
        """Now and then puts a piece of another photo, a rectangle or an ellipse, over a part of a body."""
        size = self.size_px
        for number in range(len(people)):
            at = np.argwhere(owner == number)
            if not len(at) or rng.random() > COVER:
                continue
            centre = at[rng.integers(len(at))]
            extent = np.maximum(at.max(0) - at.min(0), 8) * rng.uniform(0.15, 0.5, 2)
            rows, columns = np.ogrid[:size, :size]
            y, x = np.abs(rows - centre[0]) / extent[0], np.abs(columns - centre[1]) / extent[1]
            mask = (np.maximum(x, y) if rng.random() < 0.5 else np.hypot(x, y)) < 1
            picture[mask] = self._background(rng)[mask]
            owner[mask] = -1

    def _seen(self, people: LabelledPeople, owner: np.ndarray, vertices: np.ndarray, K: np.ndarray) -> LabelledPeople:
        """The people with boxes of their pixels, and whether enough of each is seen; those hidden are left out."""
        size, boxes, share = self.size_px, [], []
        for number in range(len(people)):
            alone = rasterise(vertices[number], self._faces, np.diag([0.5, 0.5, 1.0]) @ K, size // 2, size // 2).covered
            whole = vertices[number] @ K.T
            whole = whole[:, :2] / np.maximum(whole[:, 2:], 1e-3)
            boxes.append([*whole.min(0), *whole.max(0)])
            share.append((owner == number).sum() / 4 / max(alone.sum(), 1))
        share_seen = np.array(share)
        head = people.head_px().clip(0, size - 1).astype(int)
        faces = [owner[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] for x, y in head]
        shown = np.array([(face == number).mean() > 0.5 for number, face in enumerate(faces)])
        labelled = LabelledPeople(
            people.K,
            **people.by_person()
            | {"boxes": np.array(boxes, np.float32).clip(-size, 2 * size), "trusted": (share_seen >= VISIBLE) & shown},
        )
        return labelled[share_seen >= DOUBTFUL].with_heads_inside(size)


def _cloth(rng: np.random.Generator) -> np.ndarray:
    """A colour of clothes: often grey, dark or white."""
    if rng.random() < 0.4:
        return np.full(3, rng.uniform(15, 240)) + rng.normal(0, 6, 3)
    return rng.uniform(0, 255, 3)


def _paintable(body: Anny) -> tuple[np.ndarray, np.ndarray]:
    """The part of each surface vertex, as a number in _PARTS, and whether it is hair."""
    surface = body.surface.numpy()
    strongest = body.weights[surface].argmax(1).numpy()
    names = list(_PARTS)
    of_joint = np.array(
        [next(k for k, part in enumerate(names) if joint.startswith(_PARTS[part])) for joint in body.joint_names]
    )
    rest = body.vertex_template.numpy()[surface]
    on_head = strongest == body.head
    top, bottom = rest[on_head, 2].max(), rest[on_head, 2].min()
    behind = rest[:, 1] > np.median(rest[on_head, 1]) - 0.02
    hair = on_head & (rest[:, 2] > bottom + 0.45 * (top - bottom)) & (behind | (rest[:, 2] > top - 0.05))
    return of_joint[strongest], hair


def pose_bank(people: Sequence[LabelledPeople], backgrounds: Sequence[Path]) -> PoseBank:
    """The poses of trusted people whose limbs were seen, and the photos."""
    kept = [one.rotations[one.trusted & (one.turn_weights.mean(1) > 0.6)] for one in people]
    rotations = np.concatenate(kept) if kept else np.zeros((0, len(FREE_JOINTS), 3, 3), np.float32)
    return PoseBank(rotations, tuple(backgrounds))
