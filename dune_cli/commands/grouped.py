"""Long `--help` pages: options under headings. An option is filed by its name, for a word means the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

HEADINGS = {
    "Input": "fps map_folder images ref_depths depth_scale teachers data photos labelled pairs_root sets split "
    "submission limit validate held_out_fraction select which tasks names labels",
    "Model": "model models encoder student init body_models context flip depth_range scales teacher min_score",
    "Cameras": "intrinsics fov_deg baseline poses pose_use scale",
    "Matching": "method matcher matchers pairs neighbours retrieval retrieval_model top_k mapper solver min_confidence "
    "unit_translation threshold_px sizes_px",
    "Training": "steps accumulate learning_rate sharing drop_probability projector norm photometric "
    "cache crops keypoints max_keypoints warped_share prune_below validation_pairs teacher_minutes",
    "Dense": "dense quality qualities mesh",
    "Output": "output overwrite kind colormap overlay top_view colmap colmap_format transforms depths as_json top",
    "Advanced": "",
}
_FILED = {name: heading for heading, names in HEADINGS.items() for name in names.split()}


class GroupedCommand(click.Command):
    """`headings`: parameter name -> heading, where a name is used otherwise than elsewhere."""

    def __init__(self, *arguments: Any, headings: Mapping[str, str] | None = None, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.headings = dict(headings or {})

    def heading_of(self, param: click.Parameter) -> str:
        """Of HEADINGS; what is filed nowhere is advanced."""
        name = param.name or ""
        return self.headings.get(name) or _FILED.get(name, "Advanced")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows[self.heading_of(param)].append(record)
        width = max(len(first) for records in rows.values() for first, _ in records)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=min(width + 2, 30))
