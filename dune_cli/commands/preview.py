"""`--preview`: a picture beside a result, of the commands that write one."""

from __future__ import annotations

from pathlib import Path

import click

from dune_cli.commands.options import OutputOptions, group, option

PREVIEW = "_preview.png"  # ending of previews


@group("Output")
class PreviewedOutput(OutputOptions):
    preview: bool | None = option(
        "--preview/--no-preview",
        "Also write a picture of the result beside it, as NAME_preview.png.",
        click.BOOL,
        default_text="for photos in an output folder",
    )

    def wants_preview(self, *endings: str, pictured: bool = False) -> bool:
        """Whether previews are written: as asked, else in a folder, which is what -o names unless it ends in one of
        `endings`, and where no option writes such a picture anyway (`pictured`)."""
        if self.preview is not None:
            return self.preview
        if self.output is None or pictured:
            return False
        target = Path(self.output).expanduser()
        return target.is_dir() or target.suffix.lower() not in endings
