"""What `dune distill` does not accept: one sentence that says what is wrong, what is allowed, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from support.teacher_files import smooth_photo

SMALL_RUN = ("--steps", 1, "--batch-size", 3)


def refused(result, code: int, *parts: str) -> None:
    """One line with all of `parts`, no traceback, nothing on stdout, that exit code."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("dune:")]
    assert result.exit_code == code, result.output
    assert len(lines) == 1 and "Traceback" not in result.output and not result.stdout, result.output
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def one_teacher(teachers: str) -> str:
    return teachers.partition(",")[0]


def test_unknown_teacher(distill, photos: Path, tmp_path: Path) -> None:
    refused(
        distill("dinov3", photos, tmp_path / "run"), 2,
        "unknown teacher 'dinov3'", "aliked, da3, dinov2, dune, efficientnet-lite2, ", "timm:MODEL",
        "did you mean dinov2",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()  # the corrected command must not find a run of other settings


def test_no_teacher(distill, photos: Path, tmp_path: Path) -> None:
    refused(distill(",", photos, tmp_path / "run"), 2, "--teachers needs at least one")


def test_a_teacher_named_twice(distill, photos: Path, one_teacher: str, tmp_path: Path) -> None:
    refused(distill(f"{one_teacher},{one_teacher}", photos, tmp_path / "run"), 2, "dinov2 is there twice")


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("dinov2", "mast3r", "not an encoder model"),
        ("mast3r", "dinov2", "not a two-view model"),
        ("multihmr", "dinov2", "not a human model"),
        ("dune", "dinov2", "is no DUNE encoder"),
        ("xfeat", "dinov2", "does not fit XFeat"),
        ("efficientnet-lite2", "dinov2", "does not fit EfficientNet-Lite2"),
        ("aliked", "dinov2", "does not fit ALIKED"),
    ],
)
def test_a_file_of_the_wrong_kind(
    name: str, wrong: str, says: str, distill, teachers: str, photos: Path, tmp_path: Path
) -> None:
    file = dict(part.split("=") for part in teachers.split(","))[wrong]
    refused(distill(f"{name}={file}", photos, tmp_path / "run"), 2, file, says)


def test_a_damaged_and_a_missing_file(distill, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    refused(distill(f"dinov2={broken}", photos, tmp_path / "run"), 2, str(broken))
    refused(distill(f"dinov2={tmp_path / 'none.pth'}", photos, tmp_path / "run"), 2, "no such file")
    refused(distill("dinov2", photos, tmp_path / "run"), 3, "dune weights pull dinov2-vitl14-reg", "licence")


def test_folders_without_photos(distill, one_teacher: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(distill(one_teacher, empty, tmp_path / "run"), 2, str(empty), "holds no images", ".jpg")
    (empty / "notes.md").write_text("no photo")
    refused(distill(one_teacher, empty, tmp_path / "run"), 2, "holds no images")
    refused(distill(one_teacher, tmp_path / "none", tmp_path / "run"), 2, "no such folder")
    smooth_photo(empty / "only.png", 1)
    refused(distill(one_teacher, empty, tmp_path / "run", "--held-out", 0.9), 2, "too few")


def test_tags(distill, teachers: str, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(distill(teachers, [f"dino={photos}"], run), 2, "'dino' is no teacher", "dinov2, mast3r, multihmr")
    refused(distill(teachers, [f"dinov2={photos}", str(photos)], run), 2, "tag every source")
    refused(distill(teachers, photos, run, "--sharing", "own_data"), 2, "needs every --data source tagged")
    some = [f"dinov2={photos}", f"mast3r={photos}"]
    refused(distill(teachers, some, run, "--sharing", "own_data"), 2, "no --data is tagged for multihmr")
    others = [f"mast3r={photos}", f"multihmr={photos}"]
    refused(distill(teachers, others, run, "--sharing", "own+generic_data"), 2, "--data dinov2=photos/")
    refused(distill(teachers, some, run, "--batch-size", 1), 2, "--batch-size 1 is too small")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", 60), "--size 60 is no multiple of the patch of vit:64x2, 14 px; near: 56 or 70"),
        (("--size", 7), "near: 14"),
        (("--student", "dune-mini", "--size", 40), "16 px; near: 32 or 48"),
        (("--student", "dune-vitl"), "known: dune-vits14, dune-vitb14, dune-mini"),
        (("--student", "vit:65x2"), "multiple of 64"),
        (("--student", "timm:resnet81"), "near: resnet"),
        (("--student", "timm:mixer_s32_224", "--size", 64), "cannot be trained at --size 64"),
        (("--batch-size", 5, "--accumulate", 2), "no multiple of --accumulate 2"),
        (("--dtype", "float16"), "allowed: auto, float32, bfloat16"),
        (("--fsdp",), "start it with torchrun"),
        (("--lr", 0), "--lr 0.0 must be above 0"),
        (("--resume",), "holds no run"),
    ],
)
def test_settings(
    arguments: tuple[object, ...], says: str, distill, one_teacher: str, photos: Path, tmp_path: Path
) -> None:
    refused(distill(one_teacher, photos, tmp_path / "run", *arguments), 2, says)
    assert not (tmp_path / "run" / "config.json").exists() or "--fsdp" in arguments


def test_a_seed_out_of_range_is_a_usage_error(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    result = distill(one_teacher, photos, tmp_path / "run", "--seed", -1)
    assert result.exit_code == 2 and "Traceback" not in result.output and not result.stdout
    assert "Invalid value for '--seed': -1 is not in the range x>=0." in result.stderr


def test_another_configuration_on_resume(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert distill(one_teacher, photos, run, *SMALL_RUN).exit_code == 0
    changed = distill(one_teacher, photos, run, *SMALL_RUN, "--lr", 0.01, "--sharing", "none", "--resume")
    refused(changed, 2, "learning_rate: 0.0003 → 0.01", "sharing: lowest_loss → none", "another -o")
    free = ("--workers", 1, "--log-every", 7, "--checkpoint-minutes", 3, "--resume")
    assert distill(one_teacher, photos, run, *SMALL_RUN, *free).exit_code == 0


def test_other_inputs_on_resume(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "dinov2.pth"
    shutil.copytree(photos, folder)
    shutil.copy(one_teacher.partition("=")[2], file)
    assert distill(f"dinov2={file}", folder, tmp_path / "run", *SMALL_RUN).exit_code == 0
    smooth_photo(folder / "new.png", 5)
    state_dict = torch.load(file, weights_only=True)
    torch.save(state_dict | {"cls_token": state_dict["cls_token"] + 1}, file)
    refused(
        distill(f"dinov2={file}", folder, tmp_path / "run", *SMALL_RUN), 2,
        "the weights of dinov2 and the photos of --data changed since",
    )  # fmt: skip


def test_a_folder_of_something_else(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    refused(distill(one_teacher, photos, tmp_path), 2, "is not of a distillation")


def spoil(folder: Path, photos: Path, broken: int) -> Path:
    """24 photos, the first `broken` of them damaged in different ways."""
    shutil.copytree(photos, folder)
    for index, path in enumerate(sorted(folder.iterdir())[:broken]):
        path.write_bytes((b"", b"no picture", path.read_bytes()[:400])[index % 3])
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_broken_photos_are_skipped_counted_and_listed(
    cached: bool, distill, one_teacher: str, photos: Path, tmp_path: Path
) -> None:
    folder = spoil(tmp_path / "photos", photos, 2)
    extra = ("--cache", tmp_path / "cache", "--crops", 1) if cached else ()
    arguments = ("--steps", 8, "--held-out", 0, *extra)  # 48 images: all photos are met twice
    result = distill(one_teacher, folder, tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    assert "2 photos could not be read" in result.stderr
    for _ in range(2):  # the second time nothing is left to train, and nothing read again
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report["photos"]["broken_count"] == 2
        assert {Path(name).name for name in report["photos"]["broken"]} == {
            path.name for path in sorted(folder.iterdir())[:2]
        }
        assert all(report["photos"]["broken"].values())
        assert distill(one_teacher, folder, tmp_path / "run", *arguments).exit_code == 0
    assert "Photos that could not be read" in (tmp_path / "run" / "report.html").read_text()


def test_too_many_broken_photos_stop_the_run(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    folder = spoil(tmp_path / "photos", photos, 3)
    result = distill(one_teacher, folder, tmp_path / "run", "--steps", 8, "--held-out", 0)
    refused(result, 1, "3 of 24 photos cannot be read, more than a tenth", str(folder))


def test_a_teacher_cache_of_values_beyond_float16(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    state_dict = torch.load(one_teacher.partition("=")[2], weights_only=True)
    torch.save(state_dict | {"norm.weight": state_dict["norm.weight"] * 1e6}, tmp_path / "large.pth")
    result = distill(f"dinov2={tmp_path / 'large.pth'}", photos, tmp_path / "run", "--cache", tmp_path / "cache")
    refused(result, 1, "do not fit into float16", "leave out --cache")


def test_a_loss_that_is_not_finite_is_never_saved(distill, one_teacher: str, photos: Path, tmp_path: Path) -> None:
    state_dict = torch.load(one_teacher.partition("=")[2], weights_only=True)
    torch.save(state_dict | {"norm.weight": state_dict["norm.weight"] * float("nan")}, tmp_path / "nan.pth")
    result = distill(f"dinov2={tmp_path / 'nan.pth'}", photos, tmp_path / "run", "--checkpoint-minutes", 0)
    refused(result, 1, "the loss is not finite at step 1")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
