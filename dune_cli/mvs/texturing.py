"""A texture for a mesh from the photos: each face is shown by the view that sees it best, and what a view shows of
connected faces is one chart, a piece of its photo in the texture.

After M. Waechter, N. Moehrle and M. Goesele, "Let there be color! Large-scale texturing of 3D reconstructions", ECCV
2014: views by projected area with a penalty on seams (section 4.1; here by iterated conditional modes), charts that are
cut out of the photos (section 4.2), and one gain a view and channel that evens out exposure at the seams (section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.ndimage import minimum_filter
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from dune_cli import console, optional
from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import project, resize_transform, transform_pixels
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.photos import read_photo
from dune_cli.io.rendering import rasterise
from dune_cli.io.undistortion import undistort_image
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene

TEXTURE_PX = 4096  # longest side
CANDIDATES = 4  # views of a face that are considered
RASTER_PX = 640  # long side of the depth maps that tell what a view sees
DEPTH_SHARE = 0.02  # of the depth, by which a visible vertex may lie behind the nearest surface around its pixel
SEAM_WEIGHT, SEAM_ROUNDS = 0.25, 8  # a face takes a view of three quarters of the best one's area to save one seam
MARGIN_PX = 2  # around a chart, so that filters of the viewer find the photo there too
FILL = 0.8  # of the texture, that charts are expected to fill
PALETTE_LEVELS, PALETTE_CELL_PX = 16, 3  # of colours for faces that no view sees
GREY = 128
MAX_GAIN, GAIN_DAMPING = 1.5, 0.1

PhotoOf = Callable[[int], np.ndarray]  # (H, W, 3) uint8, without distortion, of the i-th camera


@dataclass(frozen=True)
class _Chart:
    """Faces of one view that hang together: `corner` (x, y) and `size` (w, h) of its rectangle in the photo at the
    texture's scale, and `place` (x, y) of that rectangle in the texture."""

    view: int
    corner: tuple[int, int]
    size: tuple[int, int]
    place: tuple[int, int]


def texture_scene(scene: Scene, paths: Sequence[Path], run: Run) -> Scene:
    """The scene with a texture on its surface; `paths`: the photos of its views. Meshes of single views become one.
    Without a surface the scene stays as it is, and a note says so. Of panoramas, the photos are their perspective
    views."""
    if scene.perspective is not None:
        textured = texture_scene(*scene.in_perspective(paths), run)
        return replace(scene, surface=textured.surface, notes=textured.notes)
    meshes = scene.meshes()
    if not meshes:
        return replace(scene, notes=(*scene.notes, "there is no surface to texture"))
    first = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    colors = [mesh.colors for mesh in meshes if mesh.colors is not None]
    merged = Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, first)]),
        np.concatenate(colors) if len(colors) == len(meshes) else None,
        "surface",
    )

    def photo_of(number: int) -> np.ndarray:
        index = scene.registered[number]
        return undistort_image(read_photo(paths[index]).rgb, scene.views[index].camera)

    with run.stage("texture"):
        return replace(scene, surface=texture_mesh(merged, scene.frusta(), photo_of))


def texture_mesh(mesh: Mesh, cameras: Sequence[Frustum], photo_of: PhotoOf, size_px: int = TEXTURE_PX) -> Mesh:
    """The mesh with a texture of at most `size_px` a side (the palette of unseen faces besides), without vertex
    colours.

    Photos are reduced where the texture would not hold them. Vertices at seams are doubled. Faces that no view sees
    keep the colour of their vertices. JobFailed for a mesh that no view sees. Memory: about 100 bytes a face, the
    texture and one photo.
    """
    views, areas = _best_views(mesh, cameras)
    if not (areas[:, 0] > 0).any():
        raise JobFailed("no photo shows the surface, so it cannot be textured; leave --texture out")
    neighbours = _neighbours(mesh.faces, len(mesh.vertices))
    label = _with_few_seams(views, areas, neighbours)
    chart_of_face = _connected(label, neighbours)
    pixels = np.full((len(mesh.faces), 3, 2), np.nan)  # of the corners, in the photo of the face's view
    for i, camera in enumerate(cameras):
        own = label == i
        if own.any():
            pixels[own] = _pixels(mesh.vertices, camera)[mesh.faces[own]]
    charts, scale, (width, height) = _packed(label, chart_of_face, pixels, cameras, size_px)
    texture = np.zeros((height, width, 3), np.uint8)
    for i in console.progress(sorted({chart.view for chart in charts}), "texture", unit="photo"):
        _paste(texture, _resized(photo_of(i), scale), [chart for chart in charts if chart.view == i])
    offset = np.array([np.subtract(chart.place, chart.corner) for chart in charts]).reshape(-1, 2)
    seen = label >= 0
    uv_px = np.zeros((len(mesh.faces), 3, 2))
    uv_px[seen] = transform_pixels(resize_transform(scale, scale), pixels[seen]) + offset[chart_of_face[seen], None]
    part = np.where(seen, chart_of_face, -1)
    if not seen.all():
        texture, uv_px[~seen], part[~seen] = _with_palette(texture, mesh, ~seen, len(charts))
    # one vertex for every vertex and chart
    key, corner = np.unique((part[:, None] * len(mesh.vertices) + mesh.faces).ravel(), return_inverse=True)
    first = np.zeros(len(key), np.int64)
    first[corner] = np.arange(corner.size)
    uv_px = uv_px.reshape(-1, 2)[first]
    texture = _with_even_exposure(texture, charts, key // len(mesh.vertices), key % len(mesh.vertices), uv_px)
    uv = (uv_px + 0.5) / [texture.shape[1], texture.shape[0]]
    return Mesh(
        mesh.vertices[key % len(mesh.vertices)],
        corner.reshape(-1, 3).astype(np.int64),
        name=mesh.name,
        uv=uv.clip(0, 1),
        texture=texture,
    )


def _pixels(vertices: np.ndarray, camera: Frustum) -> np.ndarray:
    """(V, 2) pixels of the vertices in a photo, NaN behind the camera."""
    return project(transform_points(inverse(camera.world_from_cam), vertices), camera.K)


def _best_views(mesh: Mesh, cameras: Sequence[Frustum]) -> tuple[np.ndarray, np.ndarray]:
    """For each face the views that see all its corners, the one with the largest area in its photo first: their indices
    (F, CANDIDATES), and the areas (F, CANDIDATES) in pixels of the photo, 0 for none."""
    count = len(mesh.faces)
    views, areas = np.zeros((count, CANDIDATES), np.int32), np.zeros((count, CANDIDATES), np.float32)
    for i, camera in enumerate(console.progress(cameras, "visible faces", unit="view")):
        area = _visible_area(mesh, camera)
        seen = np.flatnonzero(area > areas[:, -1])
        candidates = np.column_stack([areas[seen], area[seen]])
        order = np.argsort(-candidates, axis=1, kind="stable")[:, :CANDIDATES]
        areas[seen] = np.take_along_axis(candidates, order, 1)
        views[seen] = np.take_along_axis(np.column_stack([views[seen], np.full(len(seen), i)]), order, 1)
    return views, areas


def _visible_area(mesh: Mesh, camera: Frustum) -> np.ndarray:
    """(F,) the area of each face in the photo, 0 where not all corners are visible."""
    vertices_cam = transform_points(inverse(camera.world_from_cam), mesh.vertices)
    scale = min(1.0, RASTER_PX / max(camera.width, camera.height))
    width, height = (max(1, round(side * scale)) for side in (camera.width, camera.height))
    small = resize_transform(width / camera.width, height / camera.height)
    depth = rasterise(vertices_cam, mesh.faces, small @ camera.K, width, height).depth
    nearest = minimum_filter(depth, 3, mode="nearest")
    pixels = project(vertices_cam, camera.K)
    with np.errstate(invalid="ignore"):
        inside = (vertices_cam[:, 2] > 0) & (pixels >= 0).all(1)
        inside &= (pixels <= [camera.width - 1, camera.height - 1]).all(1)
    pixels = np.where(inside[:, None], pixels, 0)
    x, y = np.rint(transform_pixels(small, pixels)).astype(int).clip(0, [width - 1, height - 1]).T
    visible = inside & (vertices_cam[:, 2] <= (1 + DEPTH_SHARE) * nearest[y, x])
    a, b, c = (pixels[mesh.faces[:, k]] for k in range(3))
    area = np.abs((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])) / 2
    return np.where(visible[mesh.faces].all(1), area, 0).astype(np.float32)


def _neighbours(faces: np.ndarray, vertices: int) -> np.ndarray:
    """(F, 3) the face beyond each edge, -1 for none."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64), axis=1)
    key = edges[:, 0] * vertices + edges[:, 1]
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    one, other = order[:-1][same], order[1:][same]
    result = np.full(len(key), -1, np.int64)
    result[one], result[other] = other // 3, one // 3
    return result.reshape(-1, 3)


def _with_few_seams(views: np.ndarray, areas: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """(F,) the view of each face, -1 where none sees it: a large area, and the neighbours' view, by iterated
    conditional modes (J. Besag, "On the statistical analysis of dirty pictures", 1986)."""
    best = areas[:, 0]
    share = np.where(areas > 0, areas / np.maximum(best, 1e-30)[:, None], -np.inf)
    label = np.where(best > 0, views[:, 0], -1)
    faces = np.arange(len(label))
    for turn in range(
        2 * SEAM_ROUNDS
    ):  # every other face at a time: neighbours that change at once could swap for ever
        half = faces[faces % 2 == turn % 2]
        half = half[best[half] > 0]
        beside = np.where(neighbours[half] >= 0, label[neighbours[half]], -1)
        same = (beside[:, None, :] == views[half][:, :, None]).sum(2)
        label[half] = views[half, (share[half] + SEAM_WEIGHT * same).argmax(1)]
    return label


def _connected(label: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """(F,) the number of each face's chart, from 0 up in the order of their views; -1 for faces without a view."""
    face, edge = np.nonzero((neighbours >= 0) & (label[neighbours] == label[:, None]) & (label >= 0)[:, None])
    shape = (len(label), len(label))
    graph = sparse.coo_matrix((np.ones(len(face), bool), (face, neighbours[face, edge])), shape)
    component = connected_components(graph, directed=False)[1]
    seen = label >= 0
    result = np.full(len(label), -1, np.int64)
    result[seen] = np.unique(component[seen], return_inverse=True)[1]
    return result


def _packed(
    label: np.ndarray, chart_of_face: np.ndarray, pixels: np.ndarray, cameras: Sequence[Frustum], size_px: int
) -> tuple[list[_Chart], float, tuple[int, int]]:
    """The charts in the texture, the scale of the photos there, and its size (width, height).

    Shelves of falling height, as E. G. Coffman et al., "Performance bounds for level-oriented two-dimensional packing
    algorithms", 1980, fill them next-fit.
    """
    seen = label >= 0
    count = int(chart_of_face.max()) + 1
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, chart_of_face[seen], pixels[seen].min(1))
    np.maximum.at(high, chart_of_face[seen], pixels[seen].max(1))
    view = np.zeros(count, np.int64)
    view[chart_of_face[seen]] = label[seen]
    sides = np.array([[cameras[i].width, cameras[i].height] for i in view])
    scale = min(1.0, np.sqrt(FILL * size_px**2 / np.prod(high - low + 1, axis=1).sum()))
    while True:
        last = np.maximum(np.floor(sides * scale).astype(int) - 1, 0)  # pixel of the reduced photo
        begin = (np.floor((low + 0.5) * scale - 0.5).astype(int) - MARGIN_PX).clip(0, last)
        end = (np.ceil((high + 0.5) * scale - 0.5).astype(int) + MARGIN_PX).clip(0, last)
        sizes = end - begin + 1
        width = min(size_px, max(int(np.sqrt(sizes.prod(1).sum() / FILL)), int(sizes[:, 0].max())))
        places, height = _on_shelves(sizes, width)
        if height <= size_px and sizes[:, 0].max() <= size_px:
            break
        scale *= 0.95
    rows = zip(view.tolist(), begin.tolist(), sizes.tolist(), places.tolist())
    return [_Chart(i, tuple(at), tuple(size), tuple(to)) for i, at, size, to in rows], float(scale), (width, height)


def _on_shelves(sizes: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """The places (N, 2) of rectangles of `sizes` (N, 2) in a strip of `width`, and the height that they take."""
    places = np.zeros_like(sizes)
    x = y = shelf = 0
    for i in np.lexsort((np.arange(len(sizes)), -sizes[:, 0], -sizes[:, 1])):
        w, h = sizes[i]
        if x + w > width:
            x, y, shelf = 0, y + shelf, 0
        places[i] = x, y
        x, shelf = x + int(w), max(shelf, int(h))
    return places, y + shelf


def _resized(rgb: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return rgb
    cv2 = optional.require("cv2", "a texture")
    height, width = (max(1, int(side * scale)) for side in rgb.shape[:2])
    matrix = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
    blurred = cv2.GaussianBlur(rgb, (0, 0), 0.4 / scale) if scale < 0.8 else rgb
    return cv2.warpAffine(blurred, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _paste(texture: np.ndarray, rgb: np.ndarray, charts: Sequence[_Chart]) -> None:
    for chart in charts:
        (x, y), (w, h), (to_x, to_y) = chart.corner, chart.size, chart.place
        texture[to_y : to_y + h, to_x : to_x + w] = rgb[y : y + h, x : x + w]


def _with_palette(
    texture: np.ndarray, mesh: Mesh, unseen: np.ndarray, charts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texture with a palette below it; of the `unseen` faces the pixels (U, 3, 2) of their mean colour there, and
    the number (U,) of a chart for each colour."""
    faces = mesh.faces[unseen]
    rgb = np.full((len(faces), 3), GREY) if mesh.colors is None else mesh.colors[faces].mean(1)
    levels = (rgb * PALETTE_LEVELS / 256).astype(int)
    colour, index = np.unique(levels @ [PALETTE_LEVELS**2, PALETTE_LEVELS, 1], return_inverse=True)
    columns = max(1, texture.shape[1] // PALETTE_CELL_PX)
    shown = np.column_stack(
        [colour // PALETTE_LEVELS**2, colour // PALETTE_LEVELS % PALETTE_LEVELS, colour % PALETTE_LEVELS]
    )
    cells = np.zeros((-(-len(colour) // columns), columns, 3), np.uint8)
    cells.reshape(-1, 3)[: len(colour)] = (shown + 0.5) * 256 / PALETTE_LEVELS
    block = np.zeros((cells.shape[0] * PALETTE_CELL_PX, texture.shape[1], 3), np.uint8)
    enlarged = cells.repeat(PALETTE_CELL_PX, 0).repeat(PALETTE_CELL_PX, 1)[:, : texture.shape[1]]
    block[:, : enlarged.shape[1]] = enlarged
    at = np.column_stack([index % columns, index // columns]) * PALETTE_CELL_PX + PALETTE_CELL_PX // 2
    at[:, 1] += texture.shape[0]
    return np.vstack([texture, block]), np.repeat(at[:, None], 3, axis=1), charts + index


def _with_even_exposure(
    texture: np.ndarray, charts: Sequence[_Chart], part: np.ndarray, vertex: np.ndarray, uv_px: np.ndarray
) -> np.ndarray:
    """The texture, each view's channels times the gains that make the charts agree best at the vertices that they
    share: least squares of logarithms, drawn towards 1. `part` (N,) is the chart, `vertex` (N,) the mesh's vertex and
    `uv_px` (N, 2) the place of each vertex of the textured mesh."""
    own = np.flatnonzero(part < len(charts))
    view = np.array([chart.view for chart in charts])[part[own]]
    order = np.lexsort((view, vertex[own]))
    own, view = own[order], view[order]
    pair = np.flatnonzero((vertex[own[1:]] == vertex[own[:-1]]) & (view[1:] != view[:-1]))
    if not len(pair):
        return texture
    x, y = np.rint(uv_px[own]).astype(int).clip(0, [texture.shape[1] - 1, texture.shape[0] - 1]).T
    brightness = np.log(texture[y, x].astype(np.float64) + 8)  # so that noise in dark places weighs little
    count = int(view.max()) + 1
    rows = np.arange(len(pair))
    ones = np.ones(len(pair))
    differences = sparse.coo_matrix(
        (np.r_[ones, -ones], (np.r_[rows, rows], np.r_[view[pair], view[pair + 1]])), (len(pair), count)
    ).tocsr()
    normal = differences.T @ differences
    normal = (normal + GAIN_DAMPING * max(float(normal.diagonal().mean()), 1.0) * sparse.identity(count)).tocsc()
    gains = [spsolve(normal, differences.T @ (brightness[pair + 1, k] - brightness[pair, k])) for k in range(3)]
    gains = np.exp(np.column_stack(gains)).clip(1 / MAX_GAIN, MAX_GAIN)
    result = texture.copy()
    for chart in charts:
        (w, h), (x0, y0) = chart.size, chart.place
        area = result[y0 : y0 + h, x0 : x0 + w]
        area[:] = np.rint((area * gains[chart.view].astype(np.float32)).clip(0, 255))
    return result
