"""`dune weights`: every subcommand, and `pull` as a real process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from dune_cli import plugins
from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.weight_files import read_weights
from dune_cli.cli import main
from dune_cli.console import set_quiet
from support.file_server import FileServer
from support.published_files import TEACHERS, Fixture, dune_tree, mast3r_tree

Dune = Callable[..., subprocess.CompletedProcess[str]]
NAME, FILE = "dune-vits14-336", "dune_vitsmall14_336.pth"


@pytest.fixture(autouse=True)
def _loud() -> None:
    set_quiet(False)


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["weights", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def dune_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DUNE file as its training saves it, under its published name."""
    path = tmp_path_factory.mktemp("published") / FILE
    torch.save(dune_tree(Fixture("dune_vitsmall14_336").state()), path)
    return path


def in_store(path: Path) -> Path:
    target = weights_folder.weights_folder() / path.name
    target.symlink_to(path)
    return target


def test_list_shows_every_published_file() -> None:
    result = invoke("list", "--all")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and len(lines) == len(registry.all_entries()) + 1
    assert lines[0].split() == ["NAME", "KIND", "SIZE", "HERE", "SHA256", "LICENCE"]
    assert any(
        line.split()[:4] == ["mast3r-vitl", "two-view", "~2.75", "GB"] and "non-commercial" in line for line in lines
    )


def test_list_is_a_screenful_by_task_with_the_command(dune_file: Path) -> None:
    in_store(dune_file)
    lines = invoke("list").stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    commands = [line.partition(": dune ")[2].split()[0] for line in lines if ": dune " in line]
    verbs = ["classify", "depth", "distill", "encode", *["human"] * 2, *["reconstruct"] * 3, "segment"]
    assert commands == verbs
    assert any(line.split()[0] == "dune-mini" and "here (comes with dune)" in line for line in lines)
    assert f"also here: {NAME}" in "\n".join(lines) and "dune weights list --all" in lines[-1]
    assert any("mast3r-vitl" in line and "non-commercial" in line for line in lines)
    tasks = [task for verb in commands for task in plugins.constant("dune_cli.commands", verb, "WEIGHTS")]
    shown = {name if isinstance(name, str) else name[1] for *_, names in tasks for name in names}
    assert shown <= {entry.name for entry in registry.all_entries()}


def test_list_and_info_say_what_a_file_is_held_against(dune_file: Path) -> None:
    lines = {line.split()[0]: line for line in invoke("list", "--all").stdout.splitlines()}
    assert " registry " in lines["xfeat"] and "trusted on first use" in lines["mast3r-vitl"]
    assert "trusted on first use" in invoke("info", "mast3r-vitl").stdout
    in_store(dune_file)
    assert "trusted on first use" in next(
        li for li in invoke("list", "--all").stdout.splitlines() if li.startswith(f"{NAME} ")
    )
    invoke("verify", NAME)
    rows = {row["name"]: row["trust"] for row in json.loads(invoke("list", "--json").stdout)["weights"]}
    assert (rows[NAME], rows["mast3r-vitl"], rows["xfeat"]) == ("pinned", "first use", "registry")


def test_list_tells_what_is_here_and_what_is_half_here(dune_file: Path) -> None:
    in_store(dune_file)
    (weights_folder.weights_folder() / "dune_vitbase14_448.pth.part").write_bytes(bytes(2000))
    document = json.loads(invoke("list", "--json", "--kind", "encoder").stdout)
    rows = {row["name"]: row for row in document["weights"]}
    assert document["schema"] == "dune.weights-list/1" and document["folder"] == str(weights_folder.weights_folder())
    assert rows[NAME]["present"] and rows[NAME]["path"].endswith(FILE) and rows[NAME]["origin"] == "weights folder"
    assert not rows["dune-vitb14-448"]["present"] and rows["dune-vitb14-448"]["partial_bytes"] == 2000
    assert {row["kind"] for row in rows.values()} == {"encoder"}
    assert "2 kB of it" in invoke("list", "--all").stdout
    lines = invoke("list", "--present", "--kind", "encoder").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines if "comes with dune" not in line] == [NAME]
    assert [line.split()[0] for line in lines if "comes with dune" in line] == ["dune-mini"]


def test_info_of_a_dune_file(dune_file: Path) -> None:
    facts = json.loads(invoke("info", dune_file, "--json").stdout)
    assert facts["schema"] == "dune.weights-info/1"
    assert (facts["layout"], facts["kind"], facts["patch"], facts["width"]) == ("dune", "encoder", 14, 384)
    assert tuple(facts["teachers"]) == TEACHERS
    assert facts["name"] == NAME and facts["licence"].startswith("DUNE licence")
    assert facts["size_bytes"] == dune_file.stat().st_size
    assert facts["sha256"] == hashlib.sha256(dune_file.read_bytes()).hexdigest()
    text = invoke("info", dune_file).stdout
    for expected in ("ViT-S/14", *TEACHERS, facts["sha256"], "non-commercial", f"{facts['parameters']:,} parameters"):
        assert expected in text


def test_info_of_two_view_files(tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    facts = json.loads(invoke("info", tmp_path / "mini.pth", "--json").stdout)
    assert (facts["layout"], facts["kind"], facts["patch"], facts["licence"]) == ("mast3r", "two-view", 16, "unknown")


def test_info_of_an_unknown_file_says_what_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save({"epoch": 3, "net": {"layer": {"weight": torch.ones(2, 3)}, "bias": torch.ones(4)}}, path)
    result = invoke("info", path)
    assert result.exit_code == 0
    for expected in ("not in the registry", "10 parameters", "unknown", "epoch, net", "2 tensors"):
        assert expected in result.stdout
    assert json.loads(invoke("info", path, "--json").stdout)["licence"] == "unknown"


def test_info_of_what_is_not_here_gives_the_registry_s_knowledge() -> None:
    result = invoke("info", "dunemast3r-vitb")
    assert result.exit_code == 0
    for expected in (
        "not on this machine",
        "about 1.32 GB",
        "dune-vitb14-448-paper",
        "dune weights pull dunemast3r-vitb",
    ):
        assert expected in result.stdout
    facts = json.loads(invoke("info", "dunemast3r_cvpr25_vitbase.pth", "--json").stdout)
    assert facts["name"] == "dunemast3r-vitb" and not facts["present"]


@pytest.mark.parametrize(
    ("target", "message", "code"),
    [
        ("dune-vits14-33", "did you mean dune-vits14-336", 2),
        ("absent.pth", "no such file", 2),
        ("hostile.pth", "its pickle asks for", 2),
        ("picture.pth", "a JPEG picture", 2),
        ("cut.pth", "cut short", 2),
        ("empty.safetensors", "is empty", 2),
        (".", "is a folder", 2),
        ("broken.pth", r"broken.pth: .*does not fit", 2),
    ],
)
def test_info_of_bad_files_is_one_sentence(
    dune: Dune,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dune_file: Path,
    target: str,
    message: str,
    code: int,
) -> None:
    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    torch.save({"model": {"w": torch.ones(1)}, "args": Hostile()}, tmp_path / "hostile.pth")
    (tmp_path / "picture.pth").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    (tmp_path / "cut.pth").write_bytes(dune_file.read_bytes()[:100_000])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    wrong = {"encoder.cls_token": torch.ones(3), "encoder.patch_embed.proj.weight": torch.ones(3)}
    torch.save({"model": wrong}, tmp_path / "broken.pth")
    monkeypatch.chdir(tmp_path)
    run = dune("weights", "info", target)
    assert run.returncode == code and run.stdout == "" and not marker.exists()
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith("dune: ")
    assert re.search(message, run.stderr), run.stderr


def test_path() -> None:
    assert invoke("path").stdout.strip() == str(weights_folder.weights_folder())
    missing = invoke("path", NAME)
    assert missing.exit_code == 3 and f"dune weights pull {NAME}" in missing.stderr and missing.stdout == ""
    path = weights_folder.weights_folder() / FILE
    path.write_bytes(b"x")
    assert invoke("path", NAME).stdout.strip() == str(path)


def test_verify_remembers_the_first_hash_and_notices_a_change() -> None:
    path = weights_folder.weights_folder() / FILE
    path.write_bytes(b"first")
    first = invoke("verify", NAME)
    assert first.exit_code == 0 and first.stdout.startswith(f"pinned   {NAME}")
    assert invoke("verify", NAME).stdout.startswith(f"ok       {NAME}")
    path.write_bytes(b"other")
    changed = invoke("verify")
    assert changed.exit_code == 1 and f"changed or damaged: {path}" in changed.stderr
    rows = json.loads(invoke("verify", "--json", NAME).stdout)["files"]
    assert [row["status"] for row in rows] == ["changed"]
    assert rows[0]["sha256"] == hashlib.sha256(b"other").hexdigest()
    assert invoke("verify", "dune-vitb14-448").exit_code == 3


def test_verify_in_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    (weights_folder.weights_folder() / FILE).write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = invoke("verify", NAME)
    assert result.exit_code == 0 and "not writable to remember it" in result.stdout


def test_verify_of_a_file_elsewhere_says_that_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"mine")
    result = invoke("verify", path)
    assert result.exit_code == 0 and result.stdout.startswith("unknown  mine.pth")


def test_a_changed_file_is_not_loaded(dune_file: Path) -> None:
    """The pin is held against every later use, not only by `verify`."""
    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.errors import CheckpointError

    in_store(dune_file)
    assert invoke("verify", NAME).exit_code == 0
    (weights_folder.weights_folder() / FILE).unlink()
    changed = dune_tree(Fixture("dune_vitsmall14_336").state())
    changed["iter"] = 1001
    torch.save(changed, weights_folder.weights_folder() / FILE)
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        load_encoder(NAME, device="cpu")


def test_convert_keeps_tensors_bit_for_bit_and_tells_where_they_are_from(dune_file: Path, tmp_path: Path) -> None:
    from dune_cli.checkpoints.loader import load_encoder

    target = tmp_path / "out" / f"{NAME}.safetensors"
    result = invoke("convert", dune_file, "-o", target)
    assert result.exit_code == 0 and result.stdout.strip() == str(target), result.output
    file = read_weights(target)
    original = Fixture("dune_vitsmall14_336").state()
    assert file.format == "safetensors" and set(file.checkpoint) <= set(original)
    assert all(torch.equal(tensor, original[name]) for name, tensor in file.checkpoint.items())
    assert set(original) - set(file.checkpoint) == {"encoder.mask_token"}
    assert file.metadata["dune.source"] == NAME and file.metadata["dune.licence"].startswith("DUNE licence")
    assert file.metadata["dune.source_sha256"] == read_weights(dune_file).sha256
    facts = json.loads(invoke("info", target, "--json").stdout)
    assert (facts["kind"], tuple(facts["teachers"])) == ("encoder", TEACHERS)
    image = Fixture("dune_vitsmall14_336").image()[..., :56, :56]
    one, two = load_encoder(dune_file, device="cpu"), load_encoder(target, device="cpu")
    assert torch.equal(one(image).patches, two(image).patches)


def test_a_converted_file_in_the_weights_folder_counts_as_the_published_one(dune_file: Path) -> None:
    target = weights_folder.weights_folder() / f"{NAME}.safetensors"
    assert invoke("convert", dune_file, "-o", target).exit_code == 0
    assert invoke("path", NAME).stdout.strip() == str(target)
    assert invoke("verify", NAME).stdout.startswith("pinned")


def test_convert_refuses(dune_file: Path, tmp_path: Path) -> None:
    wrong = invoke("convert", dune_file, "-o", tmp_path / "out.pth")
    assert wrong.exit_code == 2 and ".safetensors" in wrong.stderr
    (tmp_path / "there.safetensors").write_text("mine")
    exists = invoke("convert", dune_file, "-o", tmp_path / "there.safetensors")
    assert exists.exit_code == 2 and "--overwrite" in exists.stderr
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    torch.save({"w": torch.ones(1)}, tmp_path / "unknown.pth")
    unknown = invoke("convert", tmp_path / "unknown.pth", "-o", tmp_path / "new.safetensors")
    assert unknown.exit_code == 2 and "unknown.pth: " in unknown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.safetensors", "unknown.pth"]


def weights() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1000)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """The decoder and encoder entries of dunemast3r-vits, at a local server, and the network allowed."""
    monkeypatch.delenv("DUNE_OFFLINE")
    with FileServer(weights()) as server:
        moved = tuple(replace(e, urls=(server.url,)) if e.urls else e for e in registry.all_entries())
        monkeypatch.setattr(registry, "all_entries", lambda: moved)
        yield server


def test_pull_needs_the_licence_accepted(served: FileServer) -> None:
    result = invoke("pull", NAME)
    assert result.exit_code == 2 and "--accept-licence" in result.stderr
    assert "about 110 MB" in result.stderr and "DUNE licence (NAVER, non-commercial)" in result.stderr
    assert not served.ranges and result.stdout == ""


def test_pull_fetches_what_is_needed_too_and_prints_the_paths(served: FileServer) -> None:
    result = invoke("pull", "dunemast3r-vits", "--accept-licence")
    home = weights_folder.weights_folder()
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [
        str(home / "dune_vitsmall14_448.pth"),
        str(home / "dunemast3r_cvpr25_vitsmall.pth"),
    ]
    assert "about 1.32 GB; licence: DUNE licence" in result.stderr
    again = invoke("pull", "dunemast3r_cvpr25_vitsmall.pth", "--only")  # here already: no licence to ask for
    assert again.exit_code == 0 and again.stdout.split() == [str(home / "dunemast3r_cvpr25_vitsmall.pth")]
    assert len(served.ranges) == 2


def test_pull_only(served: FileServer) -> None:
    result = invoke("pull", "dunemast3r-vits", "--only", "--accept-licence")
    assert result.exit_code == 0 and len(served.ranges) == 1


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_on_a_terminal_pull_asks(served: FileServer, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    from dune_cli.commands import weights as verb

    monkeypatch.setattr(verb, "_can_ask", lambda: True)
    result = invoke("pull", NAME, stdin=answer)
    assert result.exit_code == code
    assert "Accept the licences and download?" in result.stderr
    assert bool(served.ranges) == (code == 0)


def test_pull_knows_the_names(served: FileServer) -> None:
    result = invoke("pull", NAME, "dune-vits14-449", "--accept-licence")
    assert result.exit_code == 2 and "did you mean" in result.stderr and not served.ranges


def test_pull_offline() -> None:
    result = invoke("pull", NAME, "--accept-licence")
    assert result.exit_code == 2 and "DUNE_OFFLINE is set" in result.stderr


PULL = textwrap.dedent("""
    import sys
    from dataclasses import replace
    from dune_cli.checkpoints import registry
    from dune_cli.cli import main
    moved = tuple(replace(e, urls=(sys.argv[1],)) if e.urls else e for e in registry.all_entries())
    registry.all_entries = lambda: moved
    main(sys.argv[2:])
""")


def real_pull(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DUNE_OFFLINE"}
    command = [sys.executable, "-c", PULL, url, "weights", "pull", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL
    )


def test_pull_as_a_process(served: FileServer) -> None:
    refused = real_pull(served.url, NAME)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("dune: the licences above")
    run = real_pull(served.url, NAME, "--accept-licence", "--quiet")
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.strip() == str(weights_folder.weights_folder() / FILE)


def test_a_failed_pull_is_one_sentence_and_exit_code_1(served: FileServer) -> None:
    served.behaviour.status, served.behaviour.failures = 404, 9
    run = real_pull(served.url, NAME, "--accept-licence", "--quiet")
    assert run.returncode == 1 and run.stdout == ""
    assert len(run.stderr.splitlines()) == 1 and "answers 404" in run.stderr


@pytest.mark.parametrize("verb", ["list", "info", "pull", "verify", "convert", "path"])
def test_help_has_an_example(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0 and "Example: dune weights" in result.stdout


def test_help_imports_nothing_heavy(dune: Dune) -> None:
    script = "import sys; from dune_cli.commands import weights, doctor; "
    script += "print(sorted({'torch', 'numpy', 'cv2', 'safetensors', 'tqdm'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
    assert dune("weights", "--help").returncode == 0


def test_every_subcommand(dune: Dune, dune_file: Path, tmp_path: Path) -> None:
    in_store(dune_file)
    assert len(dune("weights", "list", "--all").stdout.splitlines()) > 60
    assert "ViT-S/14" in dune("weights", "info", NAME).stdout
    assert dune("weights", "verify", NAME).stdout.startswith("pinned")
    assert dune("weights", "path", NAME).stdout.strip().endswith(FILE)
    converted = dune("weights", "convert", NAME, "-o", tmp_path / "a.safetensors")
    assert converted.returncode == 0 and (tmp_path / "a.safetensors").is_file(), converted.stderr
    assert dune("weights", "pull", NAME).stdout.strip().endswith(FILE)  # present: nothing to fetch
