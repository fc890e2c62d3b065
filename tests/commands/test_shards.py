"""`--shards` of the verbs: the same results as their files, for any neighbours, and what is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.small_encoders import write_small_mini

pq = pytest.importorskip("pyarrow.parquet")
SIZES = ((64, 48), (48, 64), (64, 48), (64, 64), (64, 48))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (folder / f"part{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"part{number % 2}" / f"{number}.png")
    (folder / "broken.jpg").write_text("broken")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_mini(tmp_path_factory.mktemp("model") / "mini.safetensors")


def _tokens(output: Path) -> dict[str, np.ndarray]:
    rows = [row for file in sorted(output.glob("shards/*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    broken = [row for row in rows if row["error"]]
    assert [Path(row["path"]).name for row in broken] == ["broken.jpg"] and broken[0]["cls"] is None
    kept = [row for row in rows if not row["error"]]
    return {
        Path(row["path"]).stem: np.float32(row["patches"]).reshape(row["grid_height"], row["grid_width"], -1)
        for row in kept
    }


def test_features_are_those_of_files_and_do_not_depend_on_neighbours(
    dune: Any, photos: Path, encoder: Path, tmp_path: Path
) -> None:
    model = ("--model", encoder, "--size", 64)
    done = dune("encode", photos, "-o", tmp_path / "out", *model, "--batch-size", 3, "--workers", 1, "--shards", 4)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr
    assert "1 of 6 photos have no result" in done.stderr and "6 photos in" in done.stderr
    tokens = _tokens(tmp_path / "out")
    files = [photos / f"part{number % 2}" / f"{number}.png" for number in range(5)]
    assert dune("encode", *files, "-o", tmp_path / "files", *model).returncode == 0
    for number in range(5):
        with np.load(tmp_path / "files" / f"{number}.npz") as arrays:
            np.testing.assert_allclose(tokens[str(number)], arrays["patches"], atol=1e-5)
    # other neighbours, in a shard of their own: the same bits
    others = (*files[2:], photos / "broken.jpg", "-o", tmp_path / "others", *model, "--batch-size", 3, "--workers", 1)
    assert dune("encode", *others, "--shards").returncode == 0
    alone = _tokens(tmp_path / "others")
    assert len(alone) == 3 and all(np.array_equal(alone[name], tokens[name]) for name in alone)
    again = dune("encode", photos, "-o", tmp_path / "out", *model, "--batch-size", 3, "--json", "--shards", 4)
    summary = json.loads(again.stdout)
    counts = (summary["photos"], summary["errors"], len(summary["shards"]))
    assert counts == (6, 1, 2) and "photos in" not in again.stderr
    assert "2 of 2 shards are there; those whose checksums fit are kept" in again.stderr
    facts = json.loads(pq.read_schema(tmp_path / "out" / summary["shards"][0]["file"]).metadata[b"dune"])
    assert facts["models"] == summary["models"] and facts["settings"]["model"] == str(encoder)


@pytest.mark.parametrize(
    ("verb", "options", "files"),
    [
        ("depth", ("--fov-deg", 60), {"depth.png": "depth.png"}),
        ("segment", (), {"classes.png": "classes.png"}),
        ("predict", ("--tasks", "segmentation,classes"), {"segmentation.png": "segmentation.png"}),
    ],
)
def test_maps_are_those_of_files(
    verb: str, options: tuple[object, ...], files: dict[str, str], dune: Any, photos: Path, tmp_path: Path
) -> None:
    batch = ("--batch-size", 1) if verb != "predict" else ()
    out = tmp_path / "out"
    done = dune(verb, photos / "part1", photos / "broken.jpg", "-o", out, *options, *batch, "--workers", 1, "--shards")
    assert done.returncode == 0, done.stderr
    (shard,) = (out / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    rows = {Path(row["path"]).name: row for row in (json.loads(members[f"{k:012d}.json"]) for k in range(3))}
    assert rows["broken.jpg"]["error"] and rows["1.png"]["result"] and "file" not in rows["1.png"]["result"]
    single = (tmp_path / "single",) if verb == "predict" else (tmp_path / "single" / next(iter(files)),)
    assert dune(verb, photos / "part1" / "1.png", "-o", *single, *options).returncode == 0
    for inside, name in files.items():
        (file,) = (tmp_path / "single").rglob(name)
        assert members[f"{rows['1.png']['row']:012d}.{inside}"] == file.read_bytes()


def test_people_are_rows(dune: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dune("human", photos / "part1", "--model", "bundled", "-o", out, "--workers", 1, "--shards")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(next((out / "shards").glob("*.parquet")))
    assert table["people"].to_pylist() == [0, 0]
    assert json.loads(table["document"][0].as_py())["people"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "{p}", "-o", "{o}", "--workers", "2"), "--workers is for large folders; add --shards"),
        (("encode", "{p}", "-o", "{o}", "--no-verify"), "--no-verify is for large folders"),
        (("encode", "{p}", "-o", "{o}", "--tokens", "cls"), "--tokens is for shards"),
        (("encode", "{p}", "-o", "{o}", "--tokens", "cls,x", "--shards"), "x is unknown; allowed: cls, registers"),
        (("encode", "{p}", "-o", "{o}", "--format", "npz", "--shards"), "--format is for single files"),
        (("encode", "s3://bucket/photos", "-o", "{o}"), "is a URL, which is read with --shards only"),
        (("encode", "{p}/none", "-o", "{o}", "--shards"), "no such file or folder"),
        (("encode", "{p}", "-o", "{p}", "--shards"), "holds files of something else"),
        (("encode", "{p}", "-o", "{o}", "--shards", "--ray-address", "h:1"), "--ray-address belongs to --engine ray"),
        (("encode", "{p}", "-o", "{o}", "--shards", "9" * 20), "is too large; at most 1000000 is taken"),
        (("encode", "{p}", "-o", "memory://", "--shards"), "is a URL without a folder"),
        (("encode", "{p}", "-o", "{o}", "--shards", "--engine", "ray", "--ray-address", "x:99999"), "is no address"),
        (("depth", "{p}", "-o", "{o}", "--colormap", "--shards"), "--colormap is for single files"),
        (("depth", "{p}", "-o", "{o}", "--batch-size", "2"), "--batch-size is for large folders"),
        (("depth", "{p}", "-o", "{o}", "--intrinsics", "1,1,1,1;1,1,1,1", "--shards"), "several cameras"),
        (("human", "{p}", "--shards"), "shards go into a folder; name it with -o"),
        (("human", "{p}", "-o", "{o}", "--overlay", "x", "--shards"), "--overlay is for single files"),
        (("human", "{p}", "-o", "{o}", "--height", "1.6,1.7", "--shards"), "takes one height for all people"),
        (("segment", "{p}", "-o", "{o}", "--color-overlay", "--shards"), "--color-overlay is for single files"),
    ],
)
def test_what_shards_refuse(words: tuple[str, ...], said: str, dune: Any, photos: Path, tmp_path: Path) -> None:
    done = dune(*(word.format(p=photos / "part0", o=tmp_path / "out") for word in words))
    assert done.returncode == 2 and said in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))


def test_a_run_is_replaced_when_asked(dune: Any, photos: Path, encoder: Path, tmp_path: Path) -> None:
    words = ("encode", photos / "part1", "-o", tmp_path / "out", "--model", encoder, "--size", 64, "--workers", 1)
    assert dune(*words, "--tokens", "cls", "--shards").returncode == 0
    other = dune(*words, "--tokens", "registers", "--shards")
    assert other.returncode == 2 and "a run with other settings (tokens ['cls'], now ['registers'])" in other.stderr
    assert dune(*words, "--tokens", "registers", "--overwrite", "--shards").returncode == 0
    assert "registers" in pq.read_schema(next((tmp_path / "out" / "shards").glob("*.parquet"))).names
