"""`hf://owner/name/file`: what is fetched, refused, remembered and published. The hub is one on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from dune_cli.checkpoints import hub, weight_files, weights_folder
from dune_cli.cli import main
from dune_cli.commands import checks, publishing
from dune_cli.errors import CheckpointError, JobFailed, UserError, WeightsMissing
from support.hub_server import COMMIT, served
from support.small_encoders import write_small_mini

huggingface_hub = pytest.importorskip("huggingface_hub")
WEIGHTS = "hf://me/model/student.safetensors"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_small_mini(tmp_path_factory.mktemp("student") / "student.safetensors").read_bytes()


@pytest.fixture
def asked(student: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that the hub was asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("DUNE_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    files = {"student.safetensors": student, "deep/pickle.safetensors": b"\x80\x02}q\x00."}
    with served(files) as (address, paths):
        monkeypatch.setenv("HF_ENDPOINT", address)
        hub._fetch.cache_clear()
        yield paths
    hub._fetch.cache_clear()


def test_a_file_is_fetched_once_and_named_with_its_commit(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = weight_files.open_weights(WEIGHTS)
    assert file.source.name == f"{WEIGHTS}@{COMMIT}"
    assert checks.stored_name(WEIGHTS) == f"{WEIGHTS}@{COMMIT}"
    assert file.surroundings.names[0] == "model"
    hub._fetch.cache_clear()
    del asked[:]
    assert weights_folder.locate(f"{WEIGHTS}@{COMMIT}").path == file.path
    assert not asked, "a commit that is in the cache needs no network"
    hub._fetch.cache_clear()
    monkeypatch.setenv("DUNE_OFFLINE", "1")
    assert weights_folder.locate(WEIGHTS).path == file.path


def test_a_command_runs_on_a_model_of_the_hub(asked: list[str], example_photos: Path, tmp_path: Path) -> None:
    photo = next(example_photos.glob("*.jpg"))
    words = ["encode", str(photo), "-o", str(tmp_path / "f.npz"), "--size", "64", "--model", f"{WEIGHTS}@v1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["provenance"]["models"][0]["name"] == f"{WEIGHTS}@{COMMIT}"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("hf://me/model/student.bin", UserError, "pickles can run programs"),
        ("hf://me/model/model.pth@v1", UserError, "pickles can run programs"),
        ("hf://me/model", UserError, "names no file of the hub"),
        ("hf://me/../model/a.safetensors", UserError, "names no file of the hub"),
        ("hf://me/model/../a.safetensors", UserError, "names no file of the hub"),
        ("hf://me/model/a.safetensors@", UserError, "names no file of the hub"),
        ("hf://me/model/other.safetensors", UserError, "has no file other.safetensors"),
        ("hf://me/model/student.safetensors@v2", UserError, "has no revision v2"),
        ("hf://me/nothing/student.safetensors", UserError, "no repository me/nothing"),
        ("hf://me/model/deep/pickle.safetensors", CheckpointError, "pickle"),
    ],
)
def test_what_is_refused(asked: list[str], text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        weight_files.open_weights(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("variable", ["DUNE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_what_is_missing_is_named(asked: list[str], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(
        WeightsMissing, match=rf"{variable} forbids downloads.*hf download me/model student.safetensors"
    ):
        weights_folder.locate(WEIGHTS)
    assert not asked


def test_a_hub_that_is_not_there(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(JobFailed, match="does not answer"):
        weights_folder.locate(WEIGHTS)


class PublishedFiles:
    """huggingface_hub's HfApi, which keeps what it was given."""

    commits: list[tuple[str, dict[str, bytes]]]

    def __init__(self, endpoint: str | None = None) -> None:
        pass

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok

    def create_commit(self, repository: str, operations: list[object], commit_message: str) -> SimpleNamespace:
        given = {}
        for one in operations:
            content = one.path_or_fileobj
            given[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
        type(self).commits.append((repository, given))
        return SimpleNamespace(oid=COMMIT)

    def whoami(self) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("no token")


def test_weights_are_published_with_a_card_of_their_report(
    student: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PublishedFiles.commits = []
    monkeypatch.setattr(huggingface_hub, "HfApi", PublishedFiles)
    file = tmp_path / "student.safetensors"
    file.write_bytes(student)
    report = json.loads((Path(__file__).parents[2] / "weights/models/dune-mini.report.json").read_text())
    report["config"]["data"] = ["/home/somebody/photos"]
    publishing.push("hf://me/mini", (file,), report)
    assert f"hf://me/mini@{COMMIT}" in capsys.readouterr().err
    ((repository, files),) = PublishedFiles.commits
    assert repository == "me/mini" and files["student.safetensors"] == student
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: dune\n") and "somebody" not in card
    assert "dune encode photo.jpg -o features.npz --model hf://me/mini/student.safetensors" in card
    for teacher in report["teachers"]:
        assert f"| {teacher} |" in card
    for one in report["held_out"]:
        assert f"{one['student']:.4g}" in card


def test_before_a_training_the_login_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", PublishedFiles)
    with pytest.raises(UserError, match="DUNE_OFFLINE forbids the network"):
        publishing.check("hf://me/mini")
    monkeypatch.setenv("DUNE_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(UserError, match="hf auth login"):
        publishing.check("hf://me/mini")
    with pytest.raises(UserError, match="no repository of the hub"):
        publishing.check("hf://me/mini/student.safetensors")


def test_files_that_the_hub_does_not_take_stay(student: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(huggingface_hub, "HfApi", PublishedFiles)
    monkeypatch.setattr(PublishedFiles, "create_commit", refuse)
    file = tmp_path / "student.safetensors"
    file.write_bytes(student)
    with pytest.raises(JobFailed, match=r"403 Forbidden.*the same command tries again"):
        publishing.push("hf://me/mini", (file,), {})
    assert file.read_bytes() == student
