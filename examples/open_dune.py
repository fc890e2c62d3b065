"""The open DUNE: a ViT-S/14 or ViT-B/14 from teachers whose weights companies may use, in the paper's two stages.

    python examples/open_dune.py --teachers
    python examples/open_dune.py --data dinov2=photos.txt --data da3=scenes/ --data people=people.txt \\
        --student dune-vitb14 -o open-dune/ --preflight
    torchrun --nproc-per-node 8 examples/open_dune.py --data … --student dune-vitb14 -o open-dune/

Stage 1 trains at 336 px, stage 2 goes on from its student at 448 px, with the losses, teacher dropping, schedule and
augmentation of DUNE (arXiv 2503.14405; docs/models/distillation.md). The result, open-dune/stage2/student.safetensors,
is in DUNE's own layout: `dune encode --model` and every other command take it. The same command goes on where it was
stopped, in either stage.

| teacher | brings | licence of its weights |
|---|---|---|
| dinov2 (ViT-L/14 with registers) | 2-D semantics | Apache-2.0 |
| da3 (DA3-BASE) | 3-D scenes | Apache-2.0 |
| people (MoveNet, BlazePose, selfie) | people | Apache-2.0 |
| multihmr (with --research) | people, instead of `people` | NAVER, non-commercial: so is the student |

The photos are yours. A student's licence does not follow from the teachers' alone: look at that of the data, too. What
the paper used, by teacher, is in docs/models/distillation.md. Of public sets, TartanAir is CC BY 4.0 and Open Images
is CC BY (their publishers' statements); ImageNet, ScanNet++, ARKitScenes, Map-free, BEDLAM and AGORA are for research.

What to expect: `--preflight` times four steps on the machine at hand and prints hours, memory and disk for both stages.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from dune_cli.checkpoints import registry
from dune_cli.errors import DuneError, UserError
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.distiller import distill
from dune_cli.training.distill.finalize import finalize
from dune_cli.training.distill.preflight import preflight

OPEN = ("dinov2", "da3", "people")
RESEARCH = ("dinov2", "da3", "multihmr")
EPOCH = 1_281_167  # images: the paper's unit
STAGES = {
    "stage1": {"size_px": 336, "learning_rate": 3e-4, "images": 100 * EPOCH},
    "stage2": {"size_px": 448, "learning_rate": 5e-5, "images": 50 * EPOCH},
}


def stage_config(name: str, options: argparse.Namespace) -> DistillConfig:
    """The settings of a stage: the paper's, but for what the command line changes."""
    stage = STAGES[name]
    size_px = options.size or stage["size_px"]
    images = options.images or stage["images"]
    return DistillConfig(
        teachers=tuple(options.teacher or (RESEARCH if options.research else OPEN)),
        data=tuple(options.data),
        student=options.student,
        size_px=size_px,
        steps=max(1, round(images / options.batch_size)),
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        learning_rate=stage["learning_rate"],
        sharing="lowest_loss",
        compile=options.compile,
        fsdp=options.fsdp,
        cache=None if options.cache is None else str(options.cache / name),
        workers=options.workers,
        log_every=min(10, max(1, round(images / options.batch_size))),
    )


def train(options: argparse.Namespace) -> None:
    """Both stages, one after the other; a stage that is done is not repeated."""
    init: str | None = None
    for name in STAGES:
        folder = options.output / name
        config = replace(stage_config(name, options), init=init)
        student = folder / "student.safetensors"
        if not (folder / "report.json").exists():
            result = distill(config, folder)
            if result.is_main:
                files = finalize(result, folder)
                for score in files.scores:
                    print(f"{name}: {score.teacher} {score.kind}, mean removed: {score.standardised:.3f}")
        init = str(student)
    print(options.output / "stage2" / "student.safetensors")


def estimate(options: argparse.Namespace) -> None:
    """What each stage takes on this machine, as JSON."""
    found = {}
    for name in STAGES:
        config = stage_config(name, options)
        found[name] = {"steps": config.steps} | asdict(preflight(config, options.output / name))
    print(json.dumps(found, indent=1))


def print_teachers() -> None:
    """Name, file and licence of each teacher's weights, and how to get them."""
    for name, file in (("dinov2", "dinov2-vitl14-reg"), ("da3", "da3-base"), ("people", "people-teacher")):
        entry = registry.find(file)
        if entry is None:
            raise UserError(f"{file} is not in the registry of this version of dune")
        how = f"python {entry.script.script}" if entry.script else f"dune weights pull {entry.name}"
        print(f"{name}: {entry.name}, {entry.licence}; {how}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", action="store_true", help="print the teachers and their licences, and stop")
    parser.add_argument("--teacher", action="append", help="NAME or NAME=FILE, several times, instead of the open ones")
    parser.add_argument("--research", action="store_true", help="multihmr instead of people: non-commercial")
    parser.add_argument("--data", action="append", default=[], help="[TEACHER=]SOURCE as for dune distill")
    parser.add_argument("--student", default="dune-vitb14", help="as for dune distill (%(default)s)")
    parser.add_argument("--batch-size", default=1024, type=int, help="images a step, all processes (%(default)s)")
    parser.add_argument("--accumulate", default=1, type=int, help="parts of a batch, one after the other (%(default)s)")
    parser.add_argument("--images", type=int, help="images a stage (100 and 50 times 1,281,167)")
    parser.add_argument("--size", type=int, help="side of the crops in pixels (336, then 448)")
    parser.add_argument("--cache", type=Path, help="folder for the teachers' outputs of fixed crops")
    parser.add_argument("--compile", action="store_true", help="torch.compile the student")
    parser.add_argument("--fsdp", action="store_true", help="shard the student over the processes")
    parser.add_argument("--workers", default=8, type=int, help="threads that load photos (%(default)s)")
    parser.add_argument("--preflight", action="store_true", help="estimate hours, memory and disk, and stop")
    parser.add_argument("-o", "--output", type=Path, help="folder of both stages")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.teachers:
        print_teachers()
        return
    if options.output is None or not options.data:
        raise UserError("-o and --data are needed; --help shows an example")
    estimate(options) if options.preflight else train(options)


if __name__ == "__main__":
    try:
        main()
    except DuneError as error:
        raise SystemExit(str(error)) from error
