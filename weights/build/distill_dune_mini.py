"""The recipe of the `dune-mini` that comes with dune: three open teachers, one folder of unlabelled photos, a laptop.

    python weights/build/distill_dune_mini.py PHOTOS --leave-out PAIRS.json \\
        --cache cache/ --steps 1050 -o stage1/
    python weights/build/distill_dune_mini.py PHOTOS --leave-out PAIRS.json \\
        --cache cache/ --steps 800 --norm phi-s --init stage1/student.safetensors -o mini/

More teachers for the encoder that there is (what comes out of it is measured before it replaces the file):

    torchrun --nproc-per-node 2 weights/build/distill_dune_mini.py PHOTOS --leave-out PAIRS.json --cache cache/ \\
        --teachers xfeat,efficientnet-lite2,people,fastdepth,mosaic --crops 1 --photos 4000 --depth CORPUS/depth \\
        --norm phi-s --init dune-mini --steps 1000 -o mini2/

The same command goes on where it was stopped. Hardware: two CPU cores (AVX512-BF16) and 4 GB; what came out, with its
controls and hours, is in weights/models/dune-mini.md. The teachers' weights: `dune weights pull xfeat
efficientnet-lite2` and `python weights/build/bake_people_teacher.py`.

The folder is laid out as index.jsonl says (a line a file: "file", and "kind" photo, sequence or rgbd); any other folder
of photos serves `dune distill` as it is. Sequences that a benchmark is made of are left out by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.distiller import distill
from dune_cli.training.distill.finalize import finalize

RECIPE = {
    "teachers": ("xfeat", "efficientnet-lite2", "people"),
    "student": "dune-mini:xfeat+lite",
    "size_px": 224,
    "batch_size": 32,
    "learning_rate": 8e-3,  # for a batch of 256: 1e-3 here
    "sharing": "lowest_loss",
    "projector": "tp",
    "norm": "mean-std",
    "crops": 2,
    "compile": True,
}


def photo_list(corpus: Path, leave_out: list[Path]) -> list[str]:
    """Absolute paths of all colour pictures, sorted, without the sequences that `leave_out` names.

    leave_out: pairs.json files, whose image paths contain the names of their sequences' folders.
    """
    banned: set[str] = set()
    for path in leave_out:
        content = json.loads(path.read_text())
        for pair in content["pairs"] if isinstance(content, dict) else content:
            banned |= {part for key in ("image_a", "image_b") for part in Path(pair[key]).parts}
    found = []
    for line in (corpus / "index.jsonl").read_text().splitlines():
        file = Path(json.loads(line)["file"])
        if file.suffix == ".jpg" and not (file.parts[0] == "sequences" and file.parts[1] in banned):
            found.append(str((corpus / file).resolve()))
    return sorted(found)


def depth_photos(folder: Path) -> list[str]:
    """Absolute paths of the photos of an index.jsonl of photos with depth, sorted; their depth is not used."""
    lines = (folder / "index.jsonl").read_text().splitlines()
    files = [str(json.loads(line)["file"]) for line in lines]
    return sorted(str((folder / file).resolve()) for file in files if file.endswith(".jpg"))


def subset(photos: list[str], count: int | None) -> list[str]:
    """`count` of the photos, the same whatever else is in the list; all without a count."""
    by_hash = sorted(photos, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
    return sorted(by_hash[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with index.jsonl")
    parser.add_argument("--leave-out", action="append", default=[], type=Path, help="pairs.json of a benchmark")
    parser.add_argument("--photos", type=int, help="how many of the folder's photos (all)")
    parser.add_argument("--depth", type=Path, help="photos of rooms: a folder with an index.jsonl of photos with depth")
    parser.add_argument("--depth-photos", type=int, help="how many of the photos of rooms (all)")
    parser.add_argument("--teachers", default=",".join(RECIPE["teachers"]), help="%(default)s")
    parser.add_argument("--crops", default=RECIPE["crops"], type=int, help="fixed crops of each photo (%(default)s)")
    parser.add_argument("--cache", help="folder for the teachers' answers")
    parser.add_argument("--steps", default=1600, type=int, help="%(default)s")
    parser.add_argument("--batch-size", default=RECIPE["batch_size"], type=int, help="%(default)s")
    rate = RECIPE["learning_rate"]
    parser.add_argument("--learning-rate", default=rate, type=float, help="for 256 images (%(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="%(default)s")
    parser.add_argument("--init", help="student to go on from, for a further stage")
    parser.add_argument("--norm", default=RECIPE["norm"], help="of the teachers' outputs (%(default)s)")
    parser.add_argument("--student", default=RECIPE["student"], help="%(default)s")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder of the run")
    options = parser.parse_args()

    photos = options.output.parent / f"{options.output.name}-photos.txt"
    photos.parent.mkdir(parents=True, exist_ok=True)
    chosen = subset(photo_list(options.corpus, options.leave_out), options.photos)
    chosen += subset(depth_photos(options.depth), options.depth_photos) if options.depth else []
    photos.write_text("\n".join(chosen) + "\n")
    changed = ("student", "steps", "init", "norm", "crops", "batch_size", "learning_rate", "seed")
    settings = RECIPE | {name: getattr(options, name) for name in changed}
    settings["teachers"] = tuple(options.teachers.split(","))
    config = DistillConfig(data=(str(photos),), cache=options.cache, **settings)
    result = distill(config, options.output)
    if not result.is_main:
        return
    files = finalize(result, options.output)
    for score in files.scores:
        print(
            f"{score.teacher} {score.kind}: cosine {score.student:.3f}, untrained {score.untrained:.3f}, mean feature "
            f"{score.mean_feature:.3f}; mean removed {score.standardised:.3f}, untrained "
            f"{score.untrained_standardised:.3f} ({score.photos} photos, {score.tokens:.0%} of the tokens)"
        )
    print(files.student_half)


if __name__ == "__main__":
    main()
