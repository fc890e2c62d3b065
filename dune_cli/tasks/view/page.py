"""The page of `dune view`: viser's server on 127.0.0.1, its scene, and the controls beside it."""

from __future__ import annotations

import html
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import DuneError, UserError
from dune_cli.geometry.framing import VirtualCamera, frame_camera, frame_extent, up_direction
from dune_cli.io.outputs import atomic_path, unique_stems
from dune_cli.io.results import read_result
from dune_cli.io.scene_colors import COLORINGS
from dune_cli.tasks.view.layers import Look, SceneLayer

if TYPE_CHECKING:
    from viser import ClientHandle, GuiEvent, SceneClickEvent, ViserServer

HOST = "127.0.0.1"
ALL = "all"
NAMES = {
    "color": "own",
    "shaded": "shaded",
    "normal": "normal",
    "height": "height",
    "confidence": "confidence",
    "class": "class",
}
FAR = 1000.0  # a scene farther from the origin than so many times its size is moved there: float32 has 7 digits
MARK_COLOR = (255, 200, 0)
BOX_EDGES = [(a, b) for a in range(8) for b in range(a) if bin(a ^ b).count("1") == 1]
RENDER_S = 120.0  # for a screenshot
STEPS = 200  # of a slider of the crop box


@dataclass(frozen=True)
class PageSettings:
    """`port`: the first that is tried, 0 for a free one. `most_points`: of a result, more are thinned out."""

    port: int = 8080
    most_points: int = 1_000_000
    together: bool = True  # several results at once


class ViewPage:
    """Results in a browser on this machine. Files are read when they are first shown."""

    def __init__(self, files: Sequence[Path], settings: PageSettings) -> None:
        viser = optional.import_viser("dune view")
        self.settings = settings
        self.files = dict(zip(_distinct(files), files))
        self.layers: dict[str, SceneLayer] = {}
        self._lock = threading.RLock()
        first = read_result(files[0])
        positions = first.positions
        self._origin = _origin(positions)
        self._load(next(iter(self.files)), first)
        names = list(self.files) if settings.together else list(self.files)[:1]
        for name in names:
            self._load(name)
        self.shown = names
        camera = self._first_view(positions - self._origin)
        self.look = Look(
            up=tuple(up_direction([one.world_from_cam for one in self._cameras()])),
            distance=float(np.linalg.norm(camera.pivot_world - camera.world_from_cam[:3, 3])),
        )
        self.server: ViserServer = viser.ViserServer(host=HOST, port=settings.port, label="dune", verbose=False)
        self.server.request_share_url = _no_sharing  # type: ignore[method-assign]
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._set_view(camera)
        self._marks: list[np.ndarray] = []
        self._add_controls()
        self.refresh()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.get_port()}"

    def export(self, path: Path) -> None:
        """Writes what is shown as one HTML file that needs no network: the scene without the controls."""
        page = self.server.scene.as_html()
        title = html.escape(", ".join(self.shown))
        page = page.replace("<title>Viser</title>", f"<title>{title}</title>", 1)
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")

    def close(self) -> None:
        """Ends the server."""
        self.server.stop()

    def refresh(self) -> None:
        """Shows the chosen results as chosen."""
        with self._lock, self.server.atomic():
            for name in set(self.layers) - set(self.shown):
                self.server.scene.remove_by_name(f"/{name}")
            for name in self.shown:
                self.layers[name].show(self.server.scene, self.look)
            self._show_box()

    def measure(self, origin: np.ndarray, direction: np.ndarray) -> float | None:
        """Takes the place that a ray hits for a mark; the distance between the last two, None without two."""
        with self._lock:
            places = [self.layers[name].hit(origin, direction, self.look) for name in self.shown]
            found = [place for place in places if place is not None]
            if not found:
                return None
            place = min(found, key=lambda one: float(np.linalg.norm(one - origin)))
            self._marks = [*self._marks[-1:], place] if len(self._marks) < 2 else [place]
            self._show_marks()
            return float(np.linalg.norm(self._marks[1] - self._marks[0])) if len(self._marks) == 2 else None

    # --- what is shown

    def _load(self, name: str, result: Any = None) -> None:
        if name not in self.layers:
            result = read_result(self.files[name]) if result is None else result
            self.layers[name] = SceneLayer(name, result, self._origin, self.settings.most_points)

    def _cameras(self) -> list[Any]:
        return [camera for name in self.shown for camera in self.layers[name].data.cameras]

    def _first_view(self, positions: np.ndarray) -> VirtualCamera:
        cameras = self.layers[self.shown[0]].data.cameras
        if not len(cameras):
            return frame_extent(positions, (1280, 960))
        size = (cameras[0].width, cameras[0].height)
        view = frame_camera(cameras[0].K, cameras[0].world_from_cam, size, size, positions)
        return view.farther(1.8).turned(20, 10)  # so that the camera itself is seen and its photo hides nothing

    def _set_view(self, camera: VirtualCamera) -> None:
        view, scene = self.server.initial_camera, self.server.scene
        scene.set_up_direction(self.look.up)
        view.up = np.array(self.look.up)
        view.position = camera.world_from_cam[:3, 3]
        view.look_at = camera.pivot_world
        view.fov = 2 * float(np.arctan(camera.height / 2 / camera.K[1, 1]))
        view.near, view.far = 1e-3 * self.look.distance, 1e3 * self.look.distance

    @property
    def _unit(self) -> str:
        return "m" if all(self.layers[name].metric for name in self.shown) else "units"

    # --- controls

    def _change(self, **settings: Any) -> None:
        with self._lock:
            self.look = replace(self.look, **settings)
            self.refresh()

    def _add_controls(self) -> None:
        gui = self.server.gui
        if len(self.files) > 1:
            chosen = ALL if len(self.shown) > 1 else self.shown[0]
            results = gui.add_dropdown("Result", (ALL, *self.files), initial_value=chosen)
            results.on_update(lambda event: self._choose(results.value))
        offered = {name for layer in self.layers.values() for name in layer.colorings}
        names = [name for name in COLORINGS if name in offered or len(self.files) > len(self.layers)]
        colors = gui.add_dropdown("Colours", tuple(NAMES[name] for name in names))
        colors.on_update(
            lambda event: self._change(coloring=next(key for key, name in NAMES.items() if name == colors.value))
        )
        size = gui.add_slider("Point size", 0.2, 5.0, 0.1, 1.0)
        size.on_update(lambda event: self._change(point_size=float(size.value)))
        for kind in ("points", "surfaces", "cameras"):
            box = gui.add_checkbox(kind.capitalize(), True)
            box.on_update(lambda event, box=box, kind=kind: self._change(**{kind: bool(box.value)}))
        self._add_measuring()
        self._add_crop_box()
        picture = gui.add_button("Screenshot", hint="A PNG of what is seen, as a download.")
        picture.on_click(lambda event: _send_screenshot(event.client))

    def _choose(self, chosen: str) -> None:
        names = list(self.files) if chosen == ALL else [chosen]
        with self._lock:
            try:
                for name in names:
                    self._load(name)
            except DuneError as error:
                console.note(str(error))
                self.server.gui.add_markdown(f"**{html.escape(str(error))}**")
                return
            self.shown = names
            self._marks = []
            self._show_marks()
            self._set_crop_range()
            self._change(box=None)

    def _add_measuring(self) -> None:
        gui, scene = self.server.gui, self.server.scene
        with gui.add_folder("Measure"):
            active = gui.add_checkbox("Click two places", False, hint="The distance between two clicks.")
            self._distance = gui.add_text("Distance", "", disabled=True)

        def click(event: SceneClickEvent) -> None:
            before = self._marks
            length = self.measure(np.array(event.ray_origin), np.array(event.ray_direction))
            if length is not None:
                self._distance.value = f"{length:.4g} {self._unit}"
            elif self._marks is before:
                self._distance.value = "nothing is there"
            else:
                self._distance.value = "click the second place"

        @active.on_update
        def _(event: GuiEvent[Any]) -> None:
            if active.value:
                scene.on_click()(click)
            else:
                scene.remove_click_callback()
                self._marks = []
                self._distance.value = ""
                self._show_marks()

    def _show_marks(self) -> None:
        scene, size = self.server.scene, 0.006 * self.look.distance
        scene.remove_by_name("/measure")
        for index, place in enumerate(self._marks):
            scene.add_icosphere(f"/measure/{index}", size, color=MARK_COLOR, position=place)
        if len(self._marks) == 2:
            ends = np.array([self._marks])
            scene.add_line_segments("/measure/line", ends, MARK_COLOR, thickness=size / 2)
            length = float(np.linalg.norm(ends[0, 1] - ends[0, 0]))
            scene.add_label("/measure/length", f"{length:.4g} {self._unit}", position=ends.mean((0, 1)))

    def _add_crop_box(self) -> None:
        gui = self.server.gui
        with gui.add_folder("Crop box", expand_by_default=False):
            self._crops = gui.add_checkbox("Only what is inside", False)
            self._ranges = [
                gui.add_multi_slider(label, 0.0, 1.0, 1.0 / STEPS, (0.0, 1.0))
                for label in ("x (right)", "y (down)", "z (forward)")
            ]
        self._set_crop_range()

        def crop(event: GuiEvent[Any]) -> None:
            box = np.array([slider.value for slider in self._ranges]).T
            if self._crops.value or self.look.box is not None:
                self._change(box=box if self._crops.value else None)

        for control in (self._crops, *self._ranges):
            control.on_update(crop)

    def _set_crop_range(self) -> None:
        """The sliders over all of what is shown."""
        self._crops.value = False
        for slider, low, high in zip(self._ranges, *self._bounds()):
            ends = tuple(float(f"{end:.10g}") for end in (low, high))
            slider.min, slider.max, slider.step = *ends, float((high - low) / STEPS)
            slider.value = ends

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest coordinates of what is shown, a little apart where they are equal."""
        data = [self.layers[name].data for name in self.shown]
        clouds = [one.points for one in data if one.points is not None and len(one.points)]
        clouds += [mesh.vertices for one in data for mesh in one.meshes]
        points = np.concatenate(clouds)
        low, high = points.min(0), points.max(0)
        margin = 1e-3 * max(float((high - low).max()), 1e-6)
        digit = 10.0 ** np.floor(np.log10(margin))  # the sliders' ends are read
        return np.floor((low - margin) / digit) * digit, np.ceil((high + margin) / digit) * digit

    def _show_box(self) -> None:
        scene, box = self.server.scene, self.look.box
        scene.remove_by_name("/crop_box")
        if box is not None:
            corners = np.array([[box[i >> k & 1, k] for k in range(3)] for i in range(8)])
            edges = np.array([[corners[a], corners[b]] for a, b in BOX_EDGES])
            scene.add_line_segments("/crop_box", edges, MARK_COLOR, thickness=0.002 * self.look.distance)


def _send_screenshot(client: ClientHandle | None) -> None:
    if client is None:
        return
    from PIL import Image

    size = {"height": client.camera.image_height, "width": client.camera.image_width}
    try:
        pixels = client.get_render(**size, transport_format="png", timeout=RENDER_S)
    except (TimeoutError, RuntimeError):  # viser raises the latter where the page is closed
        client.add_notification("No screenshot", f"The browser did not draw within {RENDER_S:g} s.")
        return
    picture = Image.fromarray(pixels)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    content = io.BytesIO()
    white.convert("RGB").save(content, "PNG")
    client.send_file_download("dune.png", content.getvalue(), save_immediately=True)


def _no_sharing(verbose: bool = True) -> None:
    """In place of viser's tunnel into the internet: the page stays on this machine."""
    console.note("sharing is switched off: dune view shows pages on this machine only")


def _origin(positions: np.ndarray) -> np.ndarray:
    """(3,) what is taken from all coordinates: 0, or the middle of what lies far off, in round numbers."""
    low, high = np.percentile(positions, [2, 98], axis=0)
    middle, size = (low + high) / 2, float(np.linalg.norm(high - low))
    return np.round(middle) if float(np.linalg.norm(middle)) > FAR * max(size, 1e-9) else np.zeros(3)


def _distinct(files: Sequence[Path]) -> list[str]:
    """A name for each file, which is the node of its layer: file names, numbered where they repeat."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    return [f"{stem}{file.suffix}" for stem, file in zip(unique_stems(files), files)]


def open_page(files: Sequence[Path], settings: PageSettings) -> ViewPage:
    """The page of these results, served. PackageMissing without viser; UserError where a result cannot be read or no
    port is free."""
    try:
        return ViewPage(files, settings)
    except OSError as error:
        raise UserError(f"no page on {HOST}: {error.strerror or error}; name another --port") from error
