"""Defaults of options in files: which file wins, what is refused, what results say, and `dune config`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dune_cli import config, provenance
from dune_cli.cli import main
from dune_cli.commands import options
from dune_cli.commands.options import ComputeOptions, FolderGroup, option, verb

Dune = Callable[..., object]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's configuration, and one of a project to work in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    for name in ("DUNE_DEVICE", "DUNE_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "project" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "photos")
    return tmp_path


def write(files: Path, user: str = "", project: str = "") -> None:
    for path, text in ((config.user_path(), user), (files / "project" / "dune.toml", project)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def probe(*words: str, environment: dict[str, str] | None = None) -> dict:
    """What a verb `probe` gets for its options."""
    got = {}

    @verb()
    def command(
        *,
        size: int = option("--size PX", "Size.", int, 7),
        names: tuple[str, ...] = option("--names NAME,...", "Names.", options.NameList(), "a"),
        files: tuple[str, ...] = option("--file FILE", "Files.", multiple=True),
        dense: bool = option("--dense/--no-dense", "Dense.", default=True),
        compute: ComputeOptions,
    ) -> None:
        got.update(size=size, names=names, files=files, dense=dense, device=compute.device, dtype=compute.dtype)
        got["provenance"] = provenance.Run().provenance([], []).get("config")

    class ProbeGroup(FolderGroup):
        def get_command(self, ctx, cmd_name):
            return command if cmd_name == "probe" else super().get_command(ctx, cmd_name)

    group = ProbeGroup("dune", package="dune_cli.commands")
    result = CliRunner(env=environment).invoke(group, ["probe", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return got | {"stderr": result.stderr}


def test_the_command_line_wins_over_the_environment_the_project_and_the_user(files: Path) -> None:
    assert probe()["provenance"] is None
    write(files, "device = 'cuda'\ndtype = 'float16'\n[probe]\nsize = 9\ndense = false\n")
    got = probe()
    assert (got["size"], got["device"], got["dtype"], got["dense"]) == (9, "cuda", "float16", False)
    write(files, config.user_path().read_text(), "device = 'mps'\n[probe]\nnames = ['b', 'c']\nfile = 'x'\n")
    got = probe()
    assert (got["size"], got["device"], got["names"], got["files"]) == (9, "mps", ("b", "c"), ("x",))
    assert got["stderr"] == f"set by {files}/project/dune.toml: --device mps, --names b,c, --file x\n"
    user = str(config.user_path())
    assert {"option": "--size", "value": 9, "file": user} in got["provenance"] and len(got["provenance"]) == 6
    got = probe("--size", "3", "--dense", environment={"DUNE_DEVICE": "cpu"})
    assert (got["size"], got["device"], got["dtype"], got["dense"]) == (3, "cpu", "float16", True)
    assert {one["option"] for one in got["provenance"]} == {"--names", "--file", "--dtype"}
    assert probe("--quiet")["stderr"] == ""


def test_a_commands_own_table_wins_within_a_file_and_the_project_over_it(files: Path) -> None:
    write(files, "device = 'cuda'\n[probe]\ndevice = 'cpu'\n")
    assert probe()["device"] == "cpu"
    write(files, "[probe]\ndevice = 'cpu'\n", "device = 'mps'\n")
    assert probe()["device"] == "mps"


@pytest.mark.parametrize(
    "text, message",
    [
        ("size = 3", "size is unknown; allowed outside of tables: device, dtype, offline, weights"),
        ("[dpeth]\nsize = 3", "dpeth is no command of dune, so dpeth.size cannot be set"),
        ("[eval]\nsize = 3", "eval is no command of dune"),
        ("[depth]\nsise = 3", "workers; did you mean size?"),
        ("[depth]\nsize = 3", "depth.size is 3: 3 is not in the range"),
        ("[depth]\nsize = true", "depth.size is true; allowed is PX"),
        ("[depth]\nflip = 1", "depth.flip is 1; allowed is true or false"),
        ("[depth]\noverwrite = true", "depth.overwrite cannot be set; --overwrite"),
        ("[weights.pull]\naccept-licence = true", "weights.pull.accept-licence cannot be set"),
        ("dtype = 'float8'", "dtype is 'float8': 'float8' is not one of"),
        ("device = 'gpu'", "device is 'gpu': unknown device 'gpu'; allowed: auto"),
        ("offline = 'no'", "offline is 'no'; allowed is true or false"),
        ("= 3", "is no TOML file"),
        ("device = " + "[" * 5000, "is no TOML file"),
        ("[depth]\nsize = 99999999999999999999", "is too large; at most 16384 is taken"),
        ("weights = '/data'", "weights is set in the user's file only"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, message: str, files: Path, dune: Dune) -> None:
    write(files, "", text)
    for words in (["depth", "photo.jpg"], ["config", "show"]):
        result = dune(*words)
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith(f"dune: {files}/project/dune.toml") and message in result.stderr
    assert dune("depth", "--help").returncode == 0


def test_a_project_of_another_user_is_not_read(files: Path, dune: Dune, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files, "", "nonsense = 1")
    monkeypatch.setattr(os, "getuid", lambda: files.stat().st_uid + 1)
    if files.stat().st_uid == 0:
        monkeypatch.setattr(config, "TRUSTED_OWNERS", ())
    result = dune("depth", "photo.jpg", "-o", "depth.png")
    assert "belongs to another user and is not read" in result.stderr and "nonsense" not in result.stderr


def test_weights_and_offline_are_those_of_the_environment(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files, "weights = 'big'\noffline = true\n")
    monkeypatch.setenv("DUNE_WEIGHTS", "/elsewhere")
    monkeypatch.delenv("DUNE_OFFLINE")
    probe()
    assert os.environ["DUNE_WEIGHTS"] == "/elsewhere" and os.environ["DUNE_OFFLINE"] == "1"
    monkeypatch.delenv("DUNE_WEIGHTS")
    probe()
    assert os.environ["DUNE_WEIGHTS"] == str(config.user_path().parent / "big")


def test_set_show_unset_path(files: Path, dune: Dune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUNE_WEIGHTS")
    monkeypatch.delenv("DUNE_OFFLINE")
    user, project = config.user_path(), files / "project" / "photos" / "dune.toml"
    assert "nothing is set" in dune("config", "show").stderr
    assert dune("config", "set", "depth.size", "280").stdout == f"{user}\n"
    user.write_text(f"# mine\n{user.read_text()}")
    assert dune("config", "set", "eval.pairs.matchers", "sift,dune").returncode == 0
    assert dune("config", "set", "depth.flip", "true", "--project").stdout == f"{project}\n"
    assert user.read_text() == '# mine\n[depth]\nsize = 280\n\n[eval.pairs]\nmatchers = "sift,dune"\n'
    values = json.loads(dune("config", "show", "--json").stdout)["values"]
    assert values[-1] == {"key": "depth.flip", "value": True, "from": str(project)}
    assert dune("config", "path").stdout.split() == [str(user), str(project)]
    assert "is not in the range" in dune("config", "set", "depth.size", "3").stderr
    assert "depth.device is not set in" in dune("config", "unset", "depth.device").stderr
    assert f"but in {project}; add --project" in dune("config", "unset", "depth.flip").stderr
    assert f"but in {user}; leave --project out" in dune("config", "unset", "depth.size", "--project").stderr
    user.write_text("[dpeth]\nsize = 3\n")  # which unset can mend
    assert dune("config", "unset", "dpeth.size").returncode == 0
    assert dune("config", "show").stdout == f"depth.flip  true  ({project})\n"


def test_help_shows_the_default_of_a_file(files: Path) -> None:
    write(files, "[depth]\nsize = 280\n")
    assert "default: 280" in " ".join(CliRunner().invoke(main, ["depth", "--help"]).output.split())
