"""`dune render`: pictures and videos of results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import FiniteRange, OutputOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    import numpy as np

NEEDS = ("numpy", "scipy", "PIL", "cv2", "trimesh")
SCHEMA = "dune.render/1"
PICTURES, VIDEOS = (".png",), (".mp4", ".webm", ".gif")
LONG_SIDE_PX = 960
VIDEO_FPS = 25.0
MOST_FPS = 240.0
LARGEST_SIDE_PX = 8192
COLORINGS = ("color", "shaded", "normal", "height", "confidence", "class")


class PictureSize(click.ParamType):
    """Two whole numbers, width and height in pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if len(parts) != 2 or not all(part.isdigit() and 16 <= int(part) <= LARGEST_SIDE_PX for part in parts):
            self.fail(f"{value!r}: width,height of 16 to {LARGEST_SIDE_PX} pixels, such as 960,720", param, ctx)
        return int(parts[0]), int(parts[1])


@options.group("Cameras")
class VirtualCameraOptions:
    azimuth_deg: float = option(
        "--azimuth-deg DEG", "Turn of the camera to its right about the scene, in degrees.", FiniteRange(-360, 360), 0.0
    )
    elevation_deg: float = option(
        "--elevation-deg DEG", "Turn of the camera upwards about the scene, in degrees.", FiniteRange(-90, 90), 0.0
    )
    distance: float = option(
        "--distance X",
        "Distance of the camera from the scene, as a factor.",
        FiniteRange(0.01, 1000),
        1.0,
    )
    orbit_deg: float = option(
        "--orbit-deg DEG",
        "Turn of a video about the scene, in degrees. Less than 360: a swing to both sides and back.",
        FiniteRange(0, 360, min_open=True),
        360.0,
    )


@options.group("Output")
class PictureOptions(OutputOptions):
    output: str = options.output_to("a .png picture, or a .mp4, .webm or .gif video.", required=True)
    size: tuple[int, int] | None = option(
        "--size W,H",
        "Width and height of the picture, in pixels.",
        PictureSize(),
        default_text=f"{LONG_SIDE_PX} px long, in the shape of the first camera's photo, else 4:3",
    )
    background: str = option(
        "--background COLOR", "Background of the picture: a name such as black, or #RRGGBB.", default="white"
    )
    color_by: str = option(f"--color-by [{'|'.join(COLORINGS)}]", "Colours of points and surfaces.", default="color")
    point_px: int | None = option(
        "--point-size PX", "Side of a point, in pixels.", click.IntRange(1, 50), default_text="by their number"
    )
    cameras: bool = option("--cameras", "Draw the outlines of the scene's cameras.")
    seconds: float = option("--seconds S", "Length of a video, in seconds.", FiniteRange(0, 600, min_open=True), 6.0)
    fps: float | None = option(
        "--fps N", "Frames per second of a video.", options.POSITIVE_NUMBER, default_text=f"{VIDEO_FPS:g}"
    )

    def colour(self) -> tuple[int, int, int]:
        """The background as RGB. UserError for what is no colour."""
        from PIL import ImageColor

        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise UserError(
                f"--background {self.background!r} is no colour; give a name such as white, or #RRGGBB"
            ) from error


@options.verb()
def command(
    *,
    files: tuple[str, ...] = options.argument(
        "FILE...", "Scenes, people or depth: .ply, .glb, .obj, .npz, .png, or their .json.", nargs=-1, required=True
    ),
    view: VirtualCameraOptions,
    output: PictureOptions,
) -> None:
    """Render results as a picture or a video.

    Needs no browser, screen or graphics card. Draws points and triangles with their colours; surfaces without a
    picture on them are shaded. Several files are drawn into one picture, in their common coordinates.

    The view is that of the first camera in the JSON beside the first file (or in a GLB), so that the picture covers the
    photo; --azimuth-deg and --elevation-deg turn it about the scene. Without a camera, the box that holds the middle of
    the points along each axis is seen from the front. A depth map is drawn as points with the colours of its photo.

    A video begins at this view and turns the camera about the scene. Browsers play .webm (VP9) and .gif; .mp4 holds
    MPEG-4 part 2.

    \b
    Example: dune render scene.ply -o scene.png --azimuth-deg 20 --elevation-deg 10
             dune render scene.glb -o orbit.mp4 --orbit-deg 60
             dune render people.glb -o people.png --size 800,600 --background black
             dune render depth.npz -o depth_side.png --azimuth-deg 30
    """
    target = output.file(*PICTURES, *VIDEOS)
    assert target is not None
    background = output.colour()

    import numpy as np

    from dune_cli.geometry.framing import up_direction
    from dune_cli.io.png import save_png
    from dune_cli.io.results import joined, read_result, result_files
    from dune_cli.io.scene_colors import recolored
    from dune_cli.io.scene_pictures import draw, orbit, picture_size, view_of
    from dune_cli.io.video_output import write_video
    from dune_cli.provenance import sha256_of

    run = Run()
    fps = output.fps or VIDEO_FPS
    if fps > MOST_FPS:
        raise UserError(f"--fps {fps:g} is too much; a video has at most {MOST_FPS:g} frames a second")
    paths = result_files(files)
    if len(paths) > len(files):
        raise UserError(
            f"{len(paths)} results lie in what was named ({paths[0].name}, {paths[1].name}, ...); name one of them, or "
            "those that are in the same coordinates"
        )
    with run.stage("read"):
        results = [read_result(path) for path in paths]
    video = target.suffix.lower() in VIDEOS
    cameras = results[0].data.cameras
    size = output.size or picture_size(cameras, LONG_SIDE_PX)
    if target.suffix.lower() in (".mp4", ".webm") and (size[0] % 2 or size[1] % 2):
        raise UserError(f"--size {size[0]},{size[1]}: the sides of a video are even numbers; change one by a pixel")
    camera, framed_by = view_of(np.concatenate([result.positions for result in results]), cameras, size)
    camera = camera.farther(view.distance).turned(view.azimuth_deg, view.elevation_deg)
    count = max(1, round(output.seconds * fps)) if video else 1
    with run.stage("draw"):
        scene = joined(results)
        up = up_direction([one.world_from_cam for one in scene.cameras])
        scene = recolored(scene, output.color_by, up, camera.world_from_cam)

        def frames() -> Iterator[np.ndarray]:
            for one in console.progress(orbit(camera, count, view.orbit_deg), "render", count, "frame"):
                yield draw(scene, one, background, output.point_px, output.cameras)

        if video:
            write_video(target, frames(), fps)
        else:
            save_png(target, draw(scene, camera, background, output.point_px, output.cameras))
    document = {
        "schema": SCHEMA,
        "file": target.name,
        "width": size[0],
        "height": size[1],
        "frames": count,
        "framed_by": framed_by,
        "K": camera.K,
        "world_from_cam": camera.world_from_cam,
        "points": 0 if scene.points is None else len(scene.points),
        "triangles": sum(len(mesh.faces) for mesh in scene.meshes),
        "provenance": run.provenance([], [(result.path, sha256_of(result.path)) for result in results]),
    }
    output.print_lines(target)
    output.print_json([document])
