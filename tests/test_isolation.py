"""Tests see nothing of the user: neither home, nor caches, nor pulled weights, whatever these hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dune_cli.checkpoints import weights_folder

AT_IMPORT = weights_folder.weights_folder(), weights_folder.torch_hub_folders(), Path.home()
ROOT = Path(__file__).resolve().parent.parent


def test_what_a_module_sees_at_its_top_is_temporary() -> None:
    weights, hubs, home = AT_IMPORT
    temporary = Path(tempfile.gettempdir()).resolve()
    for path in (weights, *hubs, home, Path("~").expanduser(), Path(os.environ["HF_HOME"])):
        assert path.resolve().is_relative_to(temporary), path
    assert not weights.exists() or not any(weights.iterdir())
    assert weights_folder.is_offline()


def test_a_filled_weights_folder_changes_nothing(tmp_path: Path) -> None:
    """Damaged files by the published names in every place of the user's: the tests of the stems do not meet them."""
    for folder in ("w", "c/dune", "h/.cache/dune"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("xfeat.pt", "xfeat-lighterglue.pt", "efficientnet-lite2-9656183e.pth"):
            (tmp_path / folder / name).write_bytes(b"damaged")
    places = {"DUNE_WEIGHTS": "w", "XDG_CACHE_HOME": "c", "HOME": "h"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         "tests/training/distill/test_students.py", "-k", "published_network or teachers_network"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {name: str(tmp_path / folder) for name, folder in places.items()},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "failed" not in done.stdout and " passed" in done.stdout
