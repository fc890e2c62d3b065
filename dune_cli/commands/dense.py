"""The dense options of `dune reconstruct`: depth maps, the surface, and its texture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.masks import SEGMENTER
from dune_cli.commands.options import ComputeOptions, option
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.mvs.depth_fill import DepthNetwork
    from dune_cli.mvs.quality import DenseConfig
    from dune_cli.provenance import Run
    from dune_cli.sfm.scene import Scene

FILLING = "dune-depth"  # which comes with dune


@options.group("Dense")
class DenseOptions:
    dense: bool = option("--dense/--no-dense", "Compute depth maps and a dense point cloud.", default=True)
    quality: str = option(
        "--quality [low|medium|high]", "Size of the depth maps. Larger ones take more time.", default="medium"
    )
    fill: bool = option(
        "--fill/--no-fill",
        "Fill the holes of the depth maps by the depth network that comes with dune, where it fits the measured depth. "
        "Filled points have a confidence below 0.2.",
        default=False,
    )
    sky_mask: bool = option(
        "--sky-mask/--no-sky-mask",
        "Of three photos or more: no dense points where the segmentation that comes with dune sees sky, if most photos "
        "plainly show some.",
        default=True,
    )
    mesh: str | None = option(
        "--mesh [tsdf|poisson]",
        "Method of the surface that is made of all views.",
        default_text="tsdf for .obj and .glb, none for .ply",
    )
    texture: bool = option(
        "--texture/--no-texture", "Give the surface a texture from the photos (.glb, .obj).", default=False
    )

    def texture_files(self, scene: Path, photos: Sequence[Path], overwrite: bool) -> list[Path]:
        """The files that a textured surface has beside that of the scene. UserError for a format without textures, and
        for files that cannot be written."""
        if not self.texture:
            return []
        from dune_cli.io import formats, outputs

        suffixes = formats.constant(scene, "TEXTURE", None)
        if suffixes is None:
            raise UserError(f"--texture gives a picture, which {scene.name} does not hold; write -o scene.glb or .obj")
        if not self.dense:
            raise UserError("--texture needs a surface, which --no-dense leaves out; leave one of them out")
        files = [outputs.check_output(scene.with_suffix(suffix), (suffix,), overwrite) for suffix in suffixes]
        inputs = {photo.absolute() for photo in photos}
        for file in files:
            if file.absolute() in inputs:
                raise UserError(f"the texture would replace the photo {file}; give -o another name")
        return files

    def check_fill(self, method: str) -> None:
        """UserError for --fill without dense maps of feature matches."""
        if self.fill and not self.dense:
            raise UserError("--fill fills dense depth maps, which --no-dense leaves out; leave one of them out")
        if self.fill and method != "matches":
            raise UserError(
                "--fill goes with --method matches: the point maps of a --model are a network's depth; leave one of "
                "them out"
            )

    def load_fill(self, compute: ComputeOptions, run: Run) -> DepthNetwork | None:
        """The network that fills depth maps, with a note about its licence; None without --fill."""
        if not self.fill:
            return None
        from dune_cli.checkpoints.loader import load_depth
        from dune_cli.models.heads import HeadedEncoder
        from dune_cli.tasks.depth import filling_network

        with run.stage("load"):
            network = load_depth(FILLING, device=compute.device, dtype=compute.dtype)
        assert isinstance(network, HeadedEncoder)
        console.note(f"holes are filled by {network.source.name}, licence {network.source.licence}")
        return filling_network(network)

    def config(self, compute: ComputeOptions, masked: Sequence[str]) -> DenseConfig | None:
        """The settings of dense maps; None with --no-dense. `masked`: the classes that --mask leaves out anyway."""
        from dune_cli.mvs.quality import DenseConfig
        from dune_cli.mvs.sky import SkyNetwork

        def load_sky() -> SkyNetwork:
            from dune_cli.checkpoints.loader import load_head
            from dune_cli.tasks.segment import sky_network

            return sky_network(load_head(SEGMENTER, "segmentation", None, compute.device, compute.dtype))

        if not self.dense:
            return None
        finder = load_sky if self.sky_mask and "sky" not in masked else None
        return DenseConfig(self.quality, device=compute.device, load_sky=finder)

    def textured(self, scene: Scene, photos: Sequence[Path], run: Run) -> Scene:
        """The scene with a texture on its surface, if one was asked for."""
        if not self.texture:
            return scene
        from dune_cli.mvs.texturing import texture_scene

        return texture_scene(scene, photos, run)
