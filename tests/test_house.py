"""The rules of the house that no single room can hold: who imports whom, who opens weights, what help may cost."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dune_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room and the rooms that it may import besides itself. Modules at the root of the package (errors, console, ...)
# are no rooms: everyone may import those of GROUND, and they import none.
GROUND = {"__init__", "errors", "console", "progress", "provenance", "runtime", "optional", "plugins", "signals"}
LOW = {"geometry", "io", "models"}
ROOMS: dict[str, set[str]] = {
    "geometry": set(),
    "models": set(),
    "io": {"geometry"},
    "checkpoints": {"models", "io"},
    "bodies": {"checkpoints", "io"},
    "teachers": {"checkpoints", *LOW},
    "matchers": {"checkpoints", *LOW},
    "sfm": {"matchers", "checkpoints", *LOW},
    "mvs": {"sfm", *LOW},
    "tasks": {"sfm", "mvs", "matchers", "bodies", "checkpoints", *LOW},
    "training": {"sfm", "teachers", "matchers", "bodies", "checkpoints", *LOW},
    # untrained controls are the trainer's fresh students
    "evaluation": {"training", "tasks", "sfm", "mvs", "teachers", "matchers", "bodies", "checkpoints", *LOW},
}
DOCTOR = {"doctor": {"checkpoints", "probe"}, "probe": {"matchers"}}
UNDER_COMMANDS = {"commands", "doctor", *ROOMS}
COMMAND_TOP = {"errors", "console", "runtime", "plugins", "provenance", "signals", "commands"}
HEAVY = ("torch", "numpy", "cv2", "PIL", "timm", "pycolmap", "open3d", "trimesh")


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """The dotted names below `dune_cli` that a module imports, at its top or in functions, also by import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dune_cli")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports relatively; name the whole path"
            if node.module and node.module.split(".")[0] == "dune_cli":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            text = "".join(
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            if text.startswith("dune_cli."):
                yield text


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _room_of(dotted: str) -> str:
    """The room (or root module) that `dune_cli.x.y` or `dune_cli.__version__` means."""
    part = dotted.split(".")[1]
    return part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "__init__"


def test_rooms_import_only_the_rooms_below_them() -> None:
    wrong = []
    for path in MODULES:
        room = _room(path)
        if path == PACKAGE / "__init__.py":  # it has its loaders in a table, imported on first use
            continue
        if room == "cli":
            allowed = set(GROUND)  # and the verbs, by its table
        elif room == "commands":
            allowed = GROUND | UNDER_COMMANDS
        elif room in GROUND:
            allowed = set(GROUND)
        else:
            table = ROOMS | DOCTOR
            assert room in table, f"{room} is a new room: say in tests/test_house.py what it may import"
            allowed = GROUND | table[room] | {room}
        found = sorted({dotted for dotted in _imported(_tree(path), path) if _room_of(dotted) not in allowed})
        wrong += [f"{_name(path)} imports {dotted}; allowed for {room}: {sorted(allowed)}" for dotted in found]
    assert wrong == []


def test_the_arrows_hold_no_circle() -> None:
    """Along them every room is reached before those that import it, so nothing can import commands or cli either."""
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {room for room, below in ROOMS.items() if room not in done and below <= done}
        assert ready, f"a circle among {set(ROOMS) - done}"
        done |= ready
    assert not {"commands", "cli"} & (set().union(*ROOMS.values()) | set().union(*DOCTOR.values()))


def test_tasks_do_not_import_each_other() -> None:
    wrong = []
    for path in (path for path in MODULES if _room(path) == "tasks"):
        own = path.relative_to(PACKAGE / "tasks").parts[0].removesuffix(".py")
        imported = {dotted for dotted in _imported(_tree(path), path) if dotted.startswith("dune_cli.tasks.")}
        wrong += [f"{_name(path)} imports {dotted}" for dotted in imported if dotted.split(".")[2] != own]
    assert wrong == []


# Every road from a file (or another process) to Python's pickle or to code. A module that is imported from, and a call.
PICKLING_MODULES = (
    "pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "copyreg", "runpy", "code",
    "multiprocessing.connection", "multiprocessing.managers", "multiprocessing.shared_memory",
    "torch.hub", "torch.package", "torch.distributed.rpc", "torch.distributed.checkpoint", "torch.serialization",
    "torch._weights_only_unpickler", "torch.utils.model_zoo", "pandas", "yaml", "numpy.lib.npyio",
)  # fmt: skip
HARMLESS_MODULES = ("torch.distributed.checkpoint.state_dict",)  # names of a network's tensors; reads no file
PICKLING_CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.serialization.load", "th.load",
    "timm.models.load_checkpoint", "timm.models.load_state_dict", "smplx.create", "smplx.build_layer",
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec",
}  # fmt: skip
PICKLING_METHODS = {
    "read_pickle", "to_pickle", "load_state_dict_from_url", "load_checkpoint", "unsafe_load", "full_load", "load_all",
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list", "Unpickler", "find_class", "PackageImporter", "__reduce__", "__setstate__",
}  # fmt: skip
NUMPY_LOADS = {"np.load", "numpy.load", "np.lib.format.read_array", "np.lib.npyio.NpzFile", "np.lib.npyio.load"}


def _road_to_a_pickle(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        return any(
            name in PICKLING_CALLS
            or (
                any(f"{name}.".startswith(f"{module}.") for module in PICKLING_MODULES)
                and not any(f"{name}.".startswith(f"{module}.") for module in HARMLESS_MODULES)
            )
            for name in names
        )
    if isinstance(node, (ast.Attribute, ast.Name)):  # also where it is handed on and not called
        text = ast.unparse(node)
        used = text in PICKLING_CALLS and text not in ("compile",)
        return used or (isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS)
    if isinstance(node, ast.Call):
        told = {k.arg: k.value for k in node.keywords}
        never = isinstance(told.get("allow_pickle"), ast.Constant) and told["allow_pickle"].value is False
        loads = ast.unparse(node.func) in NUMPY_LOADS
        given = any(name in told for name in ("checkpoint_path", "pickle_module", "weights_only"))
        pretrained = "pretrained" in told and ast.unparse(told["pretrained"]) != "False"
        return given or pretrained or ((loads or "allow_pickle" in told) and not never)
    return False


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_road_leads_to_a_pickle(path: Path) -> None:
    """Weights come from dune_cli.checkpoints, which reads a pickle as data; a run's checkpoints are safetensors."""
    lines = sorted({getattr(node, "lineno", 0) for node in ast.walk(_tree(path)) if _road_to_a_pickle(node)})
    assert not lines, f"{_name(path)}, lines {lines}: let dune_cli.checkpoints read the file"


ROADS = """
import pickle
import torch.distributed.checkpoint as dcp
from torch.distributed import checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch import load
from torch.serialization import load as read
import torch.hub
from joblib import load
import yaml
from multiprocessing.connection import Client
torch.load(path)
torch.load(path, weights_only=True)
read = torch.load
torch.save(tree, path)
np.load(path)
np.load(path, allow_pickle=True)
np.load(path, allow_pickle=flag)
np.lib.format.read_array(file)
dist.all_gather_object(a, b)
pd.read_pickle(path)
eval("1")
timm.create_model(name, pretrained=True)
timm.create_model(name, checkpoint_path=path)
smplx.create(folder)
""".strip().splitlines()
SIDE_ROADS = """
import pickletools
from torch.distributed.checkpoint.state_dict import get_model_state_dict
np.load(path, allow_pickle=False)
np.lib.format.write_array(file, array, allow_pickle=False)
timm.create_model(name, pretrained=False)
json.load(file)
re.compile(text)
student.compile()
network.load_state_dict(state)
torch.from_numpy(array)
""".strip().splitlines()


def test_the_roads_are_known() -> None:
    def found(line: str) -> bool:
        return any(_road_to_a_pickle(node) for node in ast.walk(ast.parse(line)))

    assert [line for line in ROADS if not found(line)] == []
    assert [line for line in SIDE_ROADS if found(line)] == []


def test_nobody_evaluates_text() -> None:
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), f"{_name(path)}:{node.lineno}"


def test_only_the_console_speaks() -> None:
    """It shows control characters in names as escapes: console.result, document, note, shown."""
    wrong = []
    children = {"meshing_process.py"}  # a process of its own, whose parent reads its output
    for path in (p for p in MODULES if _room(p) not in ("console", "cli", "progress") and p.name not in children):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call):
                called, text = ast.unparse(node.func), ast.unparse(node)
                spoken = called in ("click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write") or (
                    called == "print" and not any(k.arg == "file" for k in node.keywords)
                )
                if spoken and "console.shown(" not in text:
                    wrong.append(f"{_name(path)}:{node.lineno}: {text[:60]}")
    assert wrong == []


def test_command_modules_start_with_click_and_the_standard_library() -> None:
    wrong = []
    for path in (path for path in MODULES if _room(path) in ("commands", "cli")):
        for node in _tree(path).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                root = name.split(".")[0]
                ours = root == "dune_cli" and _room_of(name) in COMMAND_TOP | {"__init__"}
                if not (ours or root == "click" or root in sys.stdlib_module_names):
                    wrong.append(f"{_name(path)}:{node.lineno}: {name}")
    assert wrong == []


def test_modules_are_one_idea() -> None:
    long = [_name(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) >= 600]
    assert long == [], "more than one thing is done here: split it"


ASK_ALL_FOR_HELP = f"""
import contextlib, io, json, sys
import click
from dune_cli.cli import main

def visit(command, words):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"], prog_name="dune")
    found[" ".join(words)] = [sorted(name for name in {HEAVY!r} if name in sys.modules), text.getvalue()]
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            try:
                visit(command.get_command(click.Context(command), name), [*words, name])
            except ImportError as error:
                found[" ".join([*words, name])] = [[str(error)], ""]

found = {{}}
visit(main, [])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[list[str], str]]:
    """Of every command and group: the heavy packages that are imported after its help was shown, and the help."""
    done = subprocess.run([sys.executable, "-c", ASK_ALL_FOR_HELP], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(helps: dict[str, tuple[list[str], str]]) -> None:
    assert {"", "reconstruct", "encode", "weights pull", "doctor"} <= set(helps)
    assert {words: heavy for words, (heavy, _) in helps.items() if heavy} == {}


def test_every_help_has_an_example(helps: dict[str, tuple[list[str], str]]) -> None:
    assert [words for words, (_, text) in helps.items() if "Example" not in text] == []


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Of processor time, the best of five, so that a busy machine does not count."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dune_cli.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


def test_importing_the_package_costs_nothing() -> None:
    code = f"import sys, dune_cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
