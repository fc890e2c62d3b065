"""SMPL-X on a made-up model file against the smplx library, and with missing, truncated and wrong files."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.bodies.registry import load_smplx
from dune_cli.bodies.smplx import JOINTS, PARENTS
from dune_cli.errors import CheckpointError, PackageMissing, WeightsMissing
from support.body_rotations import from_rotvec, random_rotations

VERTICES = 10475  # the library's own extra joints need the real number


class Tripwire:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def made_up(columns: int, seed: int = 0, vertices: int = VERTICES) -> dict[str, np.ndarray]:
    """Random arrays in the layout of SMPLX_NEUTRAL.npz, of the right shapes; no SMPL-X data."""
    rng = np.random.default_rng(seed)
    table = np.array([(2**32 - 1, *PARENTS[1:]), range(55)], np.uint32)
    weights = rng.random((vertices, 55)) ** 8
    regressor = rng.random((55, vertices)) ** 30
    return {
        "v_template": rng.normal(0, 0.4, (vertices, 3)),
        "f": rng.integers(0, vertices, (2 * vertices - 4, 3)).astype(np.uint32),
        "shapedirs": rng.normal(0, 0.01, (vertices, 3, columns)).astype(np.float32),
        "posedirs": rng.normal(0, 0.001, (vertices, 3, 486)).astype(np.float32),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": table,
        "hands_componentsl": rng.normal(size=(45, 45)),
        "hands_componentsr": rng.normal(size=(45, 45)),
        "hands_meanl": rng.normal(size=45),
        "hands_meanr": rng.normal(size=45),
        "lmk_faces_idx": rng.integers(0, vertices, 51),
        "lmk_bary_coords": np.full((51, 3), 1 / 3),
    }


def write(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / "smplx" / "SMPLX_NEUTRAL.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return made_up(400, vertices=60)


@pytest.mark.parametrize(("columns", "betas"), [(400, 10), (400, 11), (20, 10)])
def test_equals_the_smplx_library(columns: int, betas: int, tmp_path: Path) -> None:
    smplx = pytest.importorskip("smplx")
    path = write(tmp_path, made_up(columns))
    library = smplx.create(
        str(tmp_path), "smplx", use_pca=False, flat_hand_mean=True, num_betas=betas, num_expression_coeffs=10
    )
    body = load_smplx(tmp_path, betas=betas)
    generator = torch.Generator().manual_seed(1)
    vectors = 0.5 * torch.randn(3, 55, 3, generator=generator)
    shape, face = torch.randn(3, betas, generator=generator), torch.randn(3, 10, generator=generator)
    with torch.no_grad():
        expected = library(
            betas=shape,
            expression=face,
            global_orient=vectors[:, 0],
            body_pose=vectors[:, 1:22].flatten(1),
            jaw_pose=vectors[:, 22],
            leye_pose=vectors[:, 23],
            reye_pose=vectors[:, 24],
            left_hand_pose=vectors[:, 25:40].flatten(1),
            right_hand_pose=vectors[:, 40:].flatten(1),
            transl=torch.zeros(3, 3),
        )
        out = body(from_rotvec(vectors), shape, face)
    torch.testing.assert_close(out.vertices, expected.vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.joints, expected.joints[:, :55], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(body.faces.numpy(), library.faces.astype(np.int64))
    assert tuple(library.parents.tolist()) == body.parents
    assert body.source.sha256 is not None
    assert "non-commercial" in body.source.licence
    for place in (path, path.parent, tmp_path):
        assert load_smplx(place).source.sha256 == body.source.sha256


def test_names_are_those_of_the_library() -> None:
    names = pytest.importorskip("smplx.joint_names").JOINT_NAMES[:55]
    assert [name.removesuffix("_smplhf") for name in names] == list(JOINTS)
    assert JOINTS[15] == "head"
    assert JOINTS[0] == "pelvis"


def test_laws(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    write(tmp_path, small)
    body = load_smplx(tmp_path).double()
    shape = torch.randn(2, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rotations = random_rotations(0.4, 2, 55)
    out = body(rotations, shape)
    same = body(rotations, shape, torch.zeros(2, 10, dtype=torch.float64))
    torch.testing.assert_close(out.vertices, same.vertices)
    turn = random_rotations(1.0, seed=8)
    rotations[:, 0] = turn @ rotations[:, 0]
    turned = body(rotations, shape)
    pelvis = out.joints[:, :1]  # the root turns the body about the pelvis
    torch.testing.assert_close(turned.joints[:, :1], pelvis)
    torch.testing.assert_close(turned.vertices, (out.vertices - pelvis) @ turn.T + pelvis)
    torch.testing.assert_close(turned.joints, (out.joints - pelvis) @ turn.T + pelvis)
    upright = body.upright @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(upright, torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)))


def test_gradients_in_float64(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    write(tmp_path, small)
    body = load_smplx(tmp_path, betas=3, expression=2).double()
    base = random_rotations(0.3, 1, 55)

    def posed(vectors: torch.Tensor, shape: torch.Tensor, face: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turns = base.clone()
        turns[:, [0, 16, 22]] = from_rotvec(vectors)[None]
        out = body(turns, shape, face)
        return out.vertices[:, ::11], out.joints[:, [15, 20, 30]]

    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 3), (1, 3), (1, 2))]
    assert torch.autograd.gradcheck(posed, [tensor.requires_grad_() for tensor in inputs])


def test_a_missing_file_names_address_licence_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path / "mine"))
    for place in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WeightsMissing) as caught:
            load_smplx(place)
        sentence = str(caught.value)
        for word in ("https://smpl-x.is.tue.mpg.de", "register", "non-commercial", "--body-models DIR"):
            assert word in sentence
        assert str(tmp_path / "mine" / "smplx" / "SMPLX_NEUTRAL.npz") in sentence
        assert str(place or tmp_path / "mine") in sentence
        assert "\n" not in sentence
    assert caught.value.exit_code == 3


def test_the_weights_folder_is_the_default_place(
    small: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, small)
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path))
    assert load_smplx().joint_names[load_smplx().head] == "head"


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("v_template", np.zeros((60, 2)), r"v_template has shape \(60, 2\), SMPL-X's is \(60, 3\)"),
        ("v_template", np.zeros(()), r"v_template has shape \(\)"),
        ("f", np.zeros((10, 4), np.uint32), r"f has shape \(10, 4\)"),
        ("f", np.full((10, 3), 60, np.uint32), "f names vertices beyond the 60"),
        ("f", np.zeros((10, 3)), "f has numbers of type float64"),
        ("shapedirs", np.zeros((60, 3, 300)), "shapedirs has 300 columns, SMPL-X's has 400 or 20"),
        ("shapedirs", np.zeros((61, 3, 400)), r"shapedirs has shape \(61, 3, 400\)"),
        ("shapedirs", np.zeros((60, 3, 20)), "has 10 shape and 10 expression directions, needed are 11 and 10"),
        ("shapedirs", np.full((60, 3, 400), np.nan), "shapedirs has values that are not finite"),
        ("posedirs", np.zeros((60, 3, 207)), r"posedirs has shape \(60, 3, 207\), SMPL-X's is \(60, 3, 486\)"),
        ("J_regressor", np.zeros((24, 60)), r"is a SMPL model \(24 joints\), SMPL-X has 55"),
        ("J_regressor", np.zeros((52, 60)), "is a SMPL-H model"),
        ("weights", np.zeros((60, 24)), r"weights has shape \(60, 24\)"),
        ("weights", np.full((60, 55), "a"), "weights has numbers of type"),
        ("kintree_table", np.zeros((2, 55), np.int64), "kintree_table is not SMPL-X's skeleton"),
        ("posedirs", None, "lacks posedirs"),
        ("weights", np.array([{"a": 1}], object), "weights has the type object"),
    ],
)
def test_wrong_arrays_are_named(
    name: str, array: np.ndarray | None, words: str, small: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = {key: value for key, value in small.items() if key != name}
    path = write(tmp_path, arrays if array is None else arrays | {name: array})
    with pytest.raises(CheckpointError, match=words) as caught:
        load_smplx(tmp_path, betas=11)
    assert str(path) in str(caught.value)
    assert "smpl-x.is.tue.mpg.de" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "cut short"),
        ("flipped", "is damaged"),
        ("empty", "empty"),
        ("page", "no ZIP archive"),
        ("npy", "no ZIP archive"),
        ("zip", "lacks"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(
    damage: str, words: str, small: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = write(tmp_path, small)
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, small["v_template"])
    elif damage == "zip":
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(
            {
                "cut": content[:middle],
                "flipped": content[:middle] + b"x" * 99 + content[middle + 99 :],
                "empty": b"",
                "page": b"<html>Please log in</html>",
            }[damage]
        )
    with pytest.raises(CheckpointError, match=words) as caught:
        load_smplx(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_in_a_model_file_are_never_opened(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Published files hold pickled name tables, which are not needed; a hostile one would run a program."""
    mark = tmp_path / "ran"
    trap = np.array([Tripwire(mark)], object)
    pickle.loads(pickle.dumps(trap[0])).close()
    assert mark.exists()  # the trap works
    mark.unlink()
    write(tmp_path, small | {"joint2num": trap})
    assert load_smplx(tmp_path).head == 15
    write(tmp_path, small | {"posedirs": trap})
    with pytest.raises(CheckpointError):
        load_smplx(tmp_path)
    assert not mark.exists()


def test_without_the_package_a_sentence_says_what_to_install(
    small: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, small)
    monkeypatch.setitem(sys.modules, "smplx", None)
    monkeypatch.setitem(sys.modules, "smplx.lbs", None)
    with pytest.raises(PackageMissing, match="pip install smplx") as caught:
        load_smplx(tmp_path)
    assert caught.value.exit_code == 4
