"""What several tests share: made-up photos, weight files and models, and servers. Imported as `support.NAME`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TESTS = ROOT / "tests"
PARITY = TESTS / "parity"
EXAMPLES = ROOT / "examples"
EXAMPLE_PHOTOS = EXAMPLES / "photos"
