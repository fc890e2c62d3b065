"""The options of masks: what is not used of the photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import ComputeOptions, NameList, option
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.cache import WorkFolder
    from dune_cli.models.heads import HeadedEncoder
    from dune_cli.sfm.masks import MaskFiles, PhotoMasks

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

    def check_classes(self) -> None:
        """UserError for classes that the segmentation does not have, before torch is imported."""
        if self.mask:
            from dune_cli.checkpoints.weight_files import head_classes
            from dune_cli.checkpoints.weights_folder import locate
            from dune_cli.io.mask_files import check_classes

            check_classes(self.mask, head_classes(locate(SEGMENTER).path), SEGMENTER)

    def used(self, photos: list[Path], run: Run) -> tuple[list[Path], MaskFiles | None]:
        """The photos of which something is used, and their mask files. UserError for masks that do not fit."""
        from dune_cli.sfm.masks import MaskFiles

        if self.masks is None:
            return photos, None
        with run.stage("masks"):
            files = MaskFiles(self.masks, photos)
        return files.used, files

    def open_masks(
        self, files: MaskFiles | None, compute: ComputeOptions, cache: WorkFolder | None, run: Run
    ) -> PhotoMasks | None:
        """The masks of the photos; None where none were asked for. UserError for unknown classes."""
        if files is None and not self.mask:
            return None
        from dune_cli.sfm.masks import open_masks

        def load_segmenter() -> HeadedEncoder:
            from dune_cli.checkpoints.loader import load_head

            network = load_head(SEGMENTER, "segmentation", None, compute.device, compute.dtype)
            console.note(f"masks of {', '.join(self.mask)} by {network.source.name}, licence {network.source.licence}")
            return network

        with run.stage("masks"):
            return open_masks(files, self.mask, load_segmenter, cache, run)
