"""Photos: PNG, JPEG with EXIF, TIFF and the other formats."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dune_cli.io.photos import Photo, read_header, read_photo
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, 20 * 24 * 3).reshape(20, 24, 3).astype(np.uint8)
    rgb = Image.fromarray(smooth + rng.integers(0, 40, smooth.shape, np.uint8))
    deep = Image.fromarray(np.asarray(rgb)[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0x920A: 4.2, 0xA405: 28, 0xA002: 24, 0xA003: 20})
    pictures: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("a.png", rgb, {"exif": exif}),
        ("b.png", deep, {}),
        ("c.png", rgb.convert("RGBA"), {}),
        ("d.png", rgb.quantize(16), {"transparency": 3}),
        ("a.jpg", rgb, {"exif": exif, "quality": 90}),
        ("b.jpg", rgb.convert("L"), {"progressive": True}),
        ("a.tif", rgb, {"exif": exif}),
        ("b.tif", rgb, {"compression": "tiff_lzw"}),
        ("c.tif", deep, {"compression": "tiff_adobe_deflate"}),
        ("d.tif", Image.fromarray(np.asarray(deep, np.float32) / 65535), {}),
        ("a.webp", rgb, {"exif": exif}),
        ("a.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("a.bmp", rgb, {}),
        ("a.ppm", rgb, {}),
        ("a.jp2", rgb, {}),
        ("a.tga", rgb, {"compression": "tga_rle"}),
    ]
    deep_rgb = np.asarray(rgb).astype(np.uint16) * 200
    found = [
        Sample(
            {name: cv2.imencode(name[1:], colours, options)[1].tobytes()},
            lambda case, name=name: _read(case / name),
            _is_photo,
        )
        for name, colours, options in (
            ("e.png", deep_rgb, []),
            ("e.tif", deep_rgb, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
            ("f.tif", deep_rgb.astype(np.float32) / 60_000, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
            ("g.tif", deep_rgb.astype(np.float32) / 60_000, []),
        )
    ]
    for name, picture, options in pictures:
        file = io.BytesIO()
        picture.save(file, format={"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(name[2:], name[2:]), **options)
        found.append(Sample({name: file.getvalue()}, lambda case, name=name: _read(case / name), _is_photo))
    return found


def _read(path: Path) -> Photo:
    read_header(path)
    return read_photo(path)


def _is_photo(photo: Photo) -> None:
    assert photo.rgb.ndim == 3 and photo.rgb.shape[2] == 3 and photo.rgb.dtype == np.uint8
    assert min(photo.rgb.shape[:2]) >= 16 and photo.width * photo.height <= 2e8
    assert photo.orientation in range(1, 9)
    assert photo.exif_focal_px is None or 0 < photo.exif_focal_px < 1e9
