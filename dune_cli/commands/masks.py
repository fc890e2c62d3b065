"""The options of masks: what is not used of the photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import ComputeOptions, NameList, option
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.cache import WorkFolder
    from dune_cli.models.heads import HeadedEncoder
    from dune_cli.sfm.masks import PhotoMasks

SEGMENTER = "dune-segment"  # which comes with dune


@options.group("Matching")
class PhotoMaskOptions:
    masks: str | None = option(
        "--masks DIR",
        "Folder of masks, one image for each photo: photo.jpg.png or photo.png. Nothing is used of a photo where its "
        "mask is 0.",
    )
    mask: tuple[str, ...] = option(
        "--mask CLASS,...",
        "Classes of the bundled segmentation of which nothing is used, such as sky,person.",
        NameList(),
    )

    def open_masks(
        self, photos: Sequence[Path], compute: ComputeOptions, cache: WorkFolder | None, run: Run
    ) -> PhotoMasks | None:
        """The masks of the photos; None where none were asked for. UserError for masks that do not fit, and for unknown
        classes."""
        if self.masks is None and not self.mask:
            return None
        from dune_cli.sfm.masks import open_masks

        def load_segmenter() -> HeadedEncoder:
            from dune_cli.checkpoints.loader import load_head

            network = load_head(SEGMENTER, "segmentation", None, compute.device, compute.dtype)
            console.note(f"masks of {', '.join(self.mask)} by {network.source.name}, licence {network.source.licence}")
            return network

        with run.stage("masks"):
            return open_masks(self.masks, self.mask, photos, load_segmenter, cache, run)
