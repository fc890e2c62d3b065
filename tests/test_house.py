"""The structure of the package: what imports what, who opens weights, who prints, and what `--help` may cost."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from support import ROOT

PACKAGE = ROOT / "dune_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A folder of the package and the folders that it may import besides itself. Modules at the root of the package are in
# no folder: everyone may import those of GROUND, and they import none.
GROUND = {
    "__init__",
    "errors",
    "config",
    "console",
    "progress",
    "provenance",
    "runtime",
    "optional",
    "plugins",
    "signals",
}
LOW = {"geometry", "io", "models"}
FOLDERS: dict[str, set[str]] = {
    "geometry": set(),
    "models": set(),
    "io": {"geometry"},
    "checkpoints": {"models", "io"},
    "bodies": {"checkpoints", *LOW},
    "teachers": {"checkpoints", *LOW},
    "matchers": {"checkpoints", *LOW},
    "sfm": {"matchers", "checkpoints", *LOW},
    "mvs": {"sfm", *LOW},
    "export": {"checkpoints", *LOW},
    "tasks": {"sfm", "mvs", "matchers", "bodies", "checkpoints", *LOW},
    "training": {"sfm", "teachers", "matchers", "bodies", "checkpoints", *LOW},
    # untrained controls are the trainer's fresh students
    "evaluation": {"training", "tasks", "sfm", "mvs", "teachers", "matchers", "bodies", "checkpoints", *LOW},
}
ROOT_MODULES = {
    "doctor": {"checkpoints", "matchers"},
    "previews": {"tasks", "sfm", "io", "geometry"},
    "api": {"tasks", "sfm", "mvs", "matchers", "checkpoints", "io", "models"},
    "app": {"api", "previews", "tasks", "sfm", "io"},
}
UNDER_COMMANDS = {"commands", "doctor", "previews", "app", *FOLDERS}
ON_TOP_OF_COMMANDS = {"__init__", "errors", "console", "runtime", "plugins", "provenance", "signals", "commands"}
HEAVY = ("torch", "numpy", "cv2", "PIL", "timm", "pycolmap", "open3d", "trimesh")
LONGEST = 600  # lines of a module: a longer one does more than one thing
MOST_PARAMETERS = 8  # of a function of a command: more of them are an option group


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _folder(path: Path) -> str:
    """The folder of a module, or the module itself at the root of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _folder_of(dotted: str) -> str:
    """The folder (or root module) that `dune_cli.x.y` or `dune_cli.__version__` means."""
    part = dotted.split(".")[1]
    return part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "__init__"


def _file_of(dotted: str) -> Path:
    """The file that `dune_cli.x.y` or `dune_cli.x.y.name` is in."""
    base = ROOT / dotted.replace(".", "/")
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return _file_of(dotted.rpartition(".")[0])


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The dotted names that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _imported(tree: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """The dotted names below `dune_cli` that import statements import: at import time only, or also in functions and
    for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (name for name in _names(node) if name.split(".")[0] == "dune_cli")
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if everywhere or not later:
            yield from _imported(node, everywhere)


def _imported_by_name(tree: ast.AST) -> Iterator[str]:
    """The dotted names below `dune_cli` that are given to `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            parts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            text = "".join(part for part in parts if isinstance(part, str))
            if text.startswith("dune_cli."):
                yield text


def _circles(edges: Mapping[Path, set[Path]]) -> list[list[str]]:
    """Groups of files each of which reaches the others: what is left when files without imports, and then files that
    nobody left imports, are taken away until nothing changes."""
    left = dict(edges)
    while True:
        used = {below for paths in left.values() for below in paths}
        outer = {path for path, paths in left.items() if path not in used or not paths & set(left)}
        if not outer:
            return [sorted(_name(path) for path in left)] if left else []
        left = {path: paths - outer for path, paths in left.items() if path not in outer}


def test_folders_import_only_those_below_them() -> None:
    wrong = []
    for path in MODULES:
        folder = _folder(path)
        if path == PACKAGE / "__init__.py":  # its entry points are a table of names, imported on first use
            continue
        if folder in GROUND:
            allowed = set(GROUND)
        elif folder == "cli":
            allowed = GROUND | {"commands"}
        elif folder == "commands":
            allowed = GROUND | UNDER_COMMANDS
        else:
            table = FOLDERS | ROOT_MODULES
            assert folder in table, f"{folder} is new: say in {_name(Path(__file__))} what it may import"
            allowed = GROUND | table[folder] | {folder}
        relative = [n.lineno for n in ast.walk(_tree(path)) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{_name(path)}, lines {relative}: relative imports; name the whole path"
        for dotted in sorted({*_imported(_tree(path)), *_imported_by_name(_tree(path))}):
            if _folder_of(dotted) not in allowed:
                wrong.append(f"{_name(path)} imports {dotted}; allowed for {folder}: {sorted(allowed)}")
            parts = dotted.split(".")
            if folder == "tasks" and parts[1] == "tasks" and len(parts) > 2:
                own = path.relative_to(PACKAGE / "tasks").parts[0].removesuffix(".py")
                if parts[2] != own:
                    wrong.append(f"{_name(path)} imports {dotted}: what two tasks share belongs into a lower folder")
    assert wrong == []


def test_nothing_imports_in_a_circle() -> None:
    """Neither folders (by the table above) nor files: at import time, and with the imports inside functions."""
    done: set[str] = set()
    while len(done) < len(FOLDERS):
        ready = {folder for folder, below in FOLDERS.items() if folder not in done and below <= done}
        assert ready, f"a circle among {set(FOLDERS) - done}"
        done |= ready
    assert not {"commands", "cli"} & (set().union(*FOLDERS.values()) | set().union(*ROOT_MODULES.values()))
    for everywhere in (False, True):
        edges = {path: {_file_of(name) for name in _imported(_tree(path), everywhere)} - {path} for path in MODULES}
        assert _circles(edges) == [], "with imports inside functions" if everywhere else "at import time"


def test_modules_are_short_and_class_names_unique() -> None:
    long = [_name(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) >= LONGEST]
    assert long == [], "more than one thing is done here: split it"
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(_name(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


# Everything that leads from a file (or another process) to Python's pickle or to code: modules that are imported from,
# functions, methods.
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


def _may_unpickle(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any(
            name in PICKLING_CALLS
            or (
                any(f"{name}.".startswith(f"{module}.") for module in PICKLING_MODULES)
                and not any(f"{name}.".startswith(f"{module}.") for module in HARMLESS_MODULES)
            )
            for name in _names(node)
        )
    if isinstance(node, (ast.Attribute, ast.Name)):  # also where it is handed on and not called
        text = ast.unparse(node)
        used = text in PICKLING_CALLS and text not in ("compile",)
        return used or (isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS)
    if isinstance(node, ast.Call):
        keywords = {k.arg: k.value for k in node.keywords}
        allow = keywords.get("allow_pickle")
        refused = isinstance(allow, ast.Constant) and allow.value is False
        loads = ast.unparse(node.func) in NUMPY_LOADS
        given = any(name in keywords for name in ("checkpoint_path", "pickle_module", "weights_only"))
        pretrained = "pretrained" in keywords and ast.unparse(keywords["pretrained"]) != "False"
        evaluates = isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile")
        return given or pretrained or evaluates or ((loads or "allow_pickle" in keywords) and not refused)
    return False


UNSAFE = """
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
compile(text, name, "exec")
timm.create_model(name, pretrained=True)
timm.create_model(name, checkpoint_path=path)
smplx.create(folder)
""".strip().splitlines()
SAFE = """
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


def test_only_checkpoints_opens_weights_and_nobody_unpickles() -> None:
    """dune_cli.checkpoints reads a pickle as data; a training run's checkpoints are safetensors. Text is not
    evaluated anywhere."""

    def lines(tree: ast.AST) -> list[int]:
        return sorted({getattr(node, "lineno", 0) for node in ast.walk(tree) if _may_unpickle(node)})

    assert [line for line in UNSAFE if not lines(ast.parse(line))] == []
    assert [line for line in SAFE if lines(ast.parse(line))] == []
    found = {_name(path): lines(_tree(path)) for path in MODULES}
    assert {name: at for name, at in found.items() if at} == {}, "let dune_cli.checkpoints read the file"


def test_only_the_console_prints() -> None:
    """It shows control characters in names as escapes: console.result, document, note, shown."""
    wrong = []
    children = {"meshing_process.py"}  # a process of its own, whose parent reads its output
    for path in (p for p in MODULES if _folder(p) not in ("console", "cli", "progress") and p.name not in children):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call):
                called, text = ast.unparse(node.func), ast.unparse(node)
                prints = called in ("click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write") or (
                    called == "print" and not any(k.arg == "file" for k in node.keywords)
                )
                if prints and "console.shown(" not in text:
                    wrong.append(f"{_name(path)}:{node.lineno}: {text[:60]}")
    assert wrong == []


def test_commands_import_click_and_the_standard_library_at_their_top() -> None:
    wrong = []
    for path in (path for path in MODULES if _folder(path) in ("commands", "cli")):
        for node in _tree(path).body:
            for name in _names(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
                first = name.split(".")[0]
                ours = first == "dune_cli" and _folder_of(name) in ON_TOP_OF_COMMANDS
                if not (ours or first == "click" or first in sys.stdlib_module_names):
                    wrong.append(f"{_name(path)}:{node.lineno}: {name}")
    assert wrong == []


def test_functions_of_commands_have_few_parameters() -> None:
    many = []
    for path in (path for path in MODULES if _folder(path) == "commands"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                count = sum(map(len, (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)))
                if count > MOST_PARAMETERS:
                    many.append(f"{_name(path)}:{node.lineno}: {node.name} has {count}")
    assert many == [], "let a frozen dataclass of commands/options.py hold some of them"


SHOW_ALL_HELP = f"""
import contextlib, io, json, sys
import dune_cli
imported = lambda: sorted(name for name in {HEAVY!r} if name in sys.modules)
found = {{"import dune_cli": [imported(), "Example"]}}
import click
from dune_cli.cli import main

def visit(command, words):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"], prog_name="dune")
    found[" ".join(words)] = [imported(), text.getvalue()]
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            try:
                visit(command.get_command(click.Context(command), name), [*words, name])
            except ImportError as error:
                found[" ".join([*words, name])] = [[str(error)], ""]

visit(main, [])
print(json.dumps(found))
"""


def test_help_imports_nothing_heavy_and_shows_an_example() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW_ALL_HELP], capture_output=True, text=True, check=True)
    helps: dict[str, tuple[list[str], str]] = json.loads(done.stdout)
    assert {"", "import dune_cli", "reconstruct", "encode", "weights pull", "eval pairs", "doctor"} <= set(helps)
    assert {words: heavy for words, (heavy, _) in helps.items() if heavy} == {}
    assert [words for words, (_, text) in helps.items() if "Example" not in text] == []


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Of processor time, the best of three, so that a busy machine does not count."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dune_cli.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3
