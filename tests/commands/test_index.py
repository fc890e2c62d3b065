"""`dune index` and `dune search`: what they write and print, and the sentences for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dune_cli.io.photo_index import lock
from support.index_files import write_photos
from support.small_encoders import write_small_mini

PLAIN = ("--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_mini(tmp_path_factory.mktemp("model") / "mini.safetensors")


@pytest.fixture
def indexed(dune: Any, model: Path, tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 6)
    done = dune("index", tmp_path / "photos", "-o", tmp_path / "index", "--model", model, "--size", 64, *PLAIN)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'index'}\n"), done.stderr
    return tmp_path


def test_an_index_is_renewed_by_its_own_encoder(dune: Any, model: Path, indexed: Path) -> None:
    write_photos(indexed / "photos", 7)
    (indexed / "photos" / "bad.jpg").write_bytes(b"no photo")
    done = dune("index", indexed / "photos", "-o", indexed / "index", "--json", *PLAIN)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "dune.index/1" and document["encoder"]["model"] == str(model)
    assert document["run"] == {"encoded": 1, "unchanged": 6, "dropped": 0, "skipped": 1}
    assert "7 files, 7 vectors: 1 encoded, 6 unchanged, 1 left out" in done.stderr
    assert f"left out: {indexed}/photos/bad.jpg is not a picture" in done.stderr
    done = dune("index", indexed / "photos" / "img0.png", "-o", indexed / "index", *PLAIN)
    assert "1 file, 1 vector: 0 encoded, 1 unchanged, 6 dropped" in done.stderr


def test_the_bundled_encoder_is_the_default(dune: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    done = dune("index", tmp_path / "photos", "-o", tmp_path / "index", "--size", 64, "--json", *PLAIN)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["encoder"]["name"], document["dimension"]) == ("dune-mini", 256)
    done = dune("search", tmp_path / "photos" / "img1.png", "--index", tmp_path / "index", *PLAIN)
    assert done.stdout.splitlines()[0].startswith("1.0000  ") and done.stdout.count("\n") == 2


def test_search_prints_lines_json_and_a_sheet(dune: Any, indexed: Path) -> None:
    query = indexed / "photos" / "img3.png"
    words = ("search", query, "--index", indexed / "index", "--top", 3, *PLAIN)
    done = dune(*words)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0] == f"1.0000  {query}"
    done = dune(*words, "--exclude-self", "--json", "-o", indexed / "sheet.png")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "dune.search/1" and document["query"]["path"] == str(query)
    assert [hit["rank"] for hit in document["hits"]] == [1, 2, 3]
    assert [f"{hit['similarity']:.4f}  {hit['path']}" for hit in document["hits"][:2]] == lines[1:]
    assert document["provenance"]["models"][0]["name"] == "mini.safetensors"
    assert Image.open(indexed / "sheet.png").format == "PNG"
    done = dune(*words, "-o", indexed / "sheet.png")
    assert done.returncode == 2 and "--overwrite" in done.stderr
    done = dune("search", indexed / "photos", "--index", indexed / "index", "--top", 2, "-o", indexed / "c.jpg", *PLAIN)
    assert done.stdout.splitlines()[:2] == [f"{indexed / 'photos' / 'img0.png'}:", f"1.0000  {indexed}/photos/img0.png"]
    assert done.stdout.count("\n") == 18 and Image.open(indexed / "c.jpg").format == "JPEG"


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["index", "{photos}", "-o", "{index}", "--pooling", "gem"], 2, "cannot be continued by mini.safetensors (gem"),
        (["index", "{photos}", "-o", "{index}", "--model", "dune-mini"], 2, "cannot be continued by dune-mini"),
        (["index", "{photos}", "-o", "{photos}"], 2, "and no index; name an empty or new folder"),
        (["index", "{photos}", "-o", "{photo}"], 2, "is a file; name another folder"),
        (["index", "{photos}", "-o", "{index}", "--fps", "2"], 2, "no video was named"),
        (["search", "{photo}", "--index", "{photos}"], 2, "holds no index"),
        (["search", "{photo}", "--index", "{index}", "--model", "dune-mini"], 2, "give that encoder with --model"),
        (["search", "{photo}", "--index", "{index}", "-o", "{photos}/a.gif"], 2, "allowed: .jpg .jpeg .png"),
        (["search", "{photo}", "--index", "{index}", "--top", "0"], 2, "0 is not in the range x>=1"),
    ],
)
def test_mistakes_are_one_sentence(dune: Any, indexed: Path, words: list[str], code: int, said: str) -> None:
    names = {"photos": indexed / "photos", "index": indexed / "index", "photo": indexed / "photos" / "img0.png"}
    done = dune(*(word.format(**names) for word in words))
    assert done.returncode == code and said in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_faiss_is_named_with_its_cure(dune: Any, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    done = dune("search", indexed / "photos" / "img0.png", "--index", indexed / "index", "--engine", "faiss")
    assert done.returncode == 4 and "pip install 'dune-cli[search]'" in done.stderr


def test_a_moved_encoder_file_is_named(dune: Any, indexed: Path, model: Path, tmp_path: Path) -> None:
    header = json.loads((indexed / "index" / "index.json").read_text())
    header["encoder"]["model"] = str(tmp_path / "gone.safetensors")
    (indexed / "index" / "index.json").write_text(json.dumps(header))
    words = ("search", indexed / "photos" / "img0.png", "--index", indexed / "index", *PLAIN)
    done = dune(*words)
    assert done.returncode == 2 and "gone.safetensors" in done.stderr.splitlines()[-1]
    assert dune(*words, "--model", model).returncode == 0


def test_two_processes_at_once(dune: Any, indexed: Path) -> None:
    with lock(indexed / "index"):
        done = dune("index", indexed / "photos", "-o", indexed / "index", *PLAIN)
        assert done.returncode == 1 and "another process is writing the index" in done.stderr.splitlines()[-1]
        assert dune("search", indexed / "photos" / "img0.png", "--index", indexed / "index", *PLAIN).returncode == 0
