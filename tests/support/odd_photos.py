"""Writes one picture in every form that people have, and every way in which a file can fail to be a photo."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dune_cli.io.orientation import to_stored

Writer = Callable[[Path, np.ndarray], Path]


def _pillow(ending: str, mode: str, **options: object) -> Writer:
    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = stem.with_name(stem.name + ending)
        Image.fromarray(rgb).convert(mode).save(path, **options)
        return path

    return write


def _opencv(ending: str, convert: Callable[[np.ndarray], np.ndarray]) -> Writer:
    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = stem.with_name(stem.name + ending)
        assert cv2.imwrite(str(path), convert(rgb))
        return path

    return write


def _grey(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))


def _transparent(ending: str) -> Writer:
    """The picture with an opaque middle and a see-through border, below which it is black."""

    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = stem.with_name(stem.name + ending)
        alpha = np.zeros(rgb.shape[:2], np.uint8)
        alpha[4:-4, 4:-4] = 255
        Image.fromarray(np.dstack([rgb * (alpha[..., None] > 0), alpha])).save(path, lossless=True)
        return path

    return write


def _animated(ending: str) -> Writer:
    """The picture, then its negative."""

    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = stem.with_name(stem.name + ending)
        frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
        options = {} if ending == ".gif" else {"lossless": True}
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
        return path

    return write


GOOD: dict[str, Writer] = {
    "CMYK JPEG": _pillow(".jpg", "CMYK", quality=98),
    "CMYK TIFF": _pillow(".tif", "CMYK"),
    "16-bit RGB PNG": _opencv(".png", lambda rgb: rgb[..., ::-1].astype(np.uint16) * 257),
    "16-bit RGB TIFF": _opencv(".tif", lambda rgb: rgb[..., ::-1].astype(np.uint16) * 257),
    "16-bit grey PNG": _opencv(".png", lambda rgb: _grey(rgb).astype(np.uint16) * 257),
    "16-bit grey TIFF": _opencv(".tif", lambda rgb: _grey(rgb).astype(np.uint16) * 257),
    "float TIFF": _opencv(".tif", lambda rgb: _grey(rgb).astype(np.float32) / 255),
    "grey PNG": _pillow(".png", "L"),
    "grey JPEG": _pillow(".jpg", "L", quality=98),
    "palette PNG": _pillow(".png", "P"),
    "alpha PNG": _transparent(".png"),
    "alpha WebP": _transparent(".webp"),
    "animated GIF": _animated(".gif"),
    "animated WebP": _animated(".webp"),
    "animated PNG": _animated(".png"),
    "BMP": _pillow(".bmp", "RGB"),
    "wrong ending": lambda stem, rgb: _pillow(".png", "RGB")(stem, rgb).rename(stem.with_name(stem.name + ".jpg")),
}


def _bytes(name: str, content: bytes) -> Writer:
    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = stem.with_name(name)
        path.write_bytes(content)
        return path

    return write


def _cut(ending: str, share: float, **options: object) -> Writer:
    def write(stem: Path, rgb: np.ndarray) -> Path:
        path = _pillow(ending, "RGB", **options)(stem, rgb)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return write


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG header and data of a grey picture of any size, whose rows are never there."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _tiff_without_width(stem: Path, rgb: np.ndarray) -> Path:
    path = _pillow(".tif", "RGB")(stem, rgb)
    content = path.read_bytes()
    start = struct.unpack_from("<I", content, 4)[0] + 2  # of the directory's first entry, ImageWidth (256)
    assert struct.unpack_from("<H", content, start) == (256,)
    path.write_bytes(content[:start] + struct.pack("<H", 60_000) + content[start + 2 :])
    return path


# what it is -> (how to make it, a word that the message must hold)
BAD: dict[str, tuple[Writer, str]] = {
    "cut JPEG": (_cut(".jpg", 0.5), "damaged or cut off"),
    "cut PNG": (_cut(".png", 0.5), "damaged or cut off"),
    "cut TIFF": (_cut(".tif", 0.5), "cut.tif"),
    "cut LZW TIFF": (_cut(".tif", 0.98, compression="tiff_lzw"), "cut.tif"),
    "TIFF without width": (_tiff_without_width, "its beginning is damaged"),
    "cut WebP": (_cut(".webp", 0.5), "cut.webp"),
    "cut header": (_bytes("cut_header.jpg", b"\xff\xd8\xff\xe0"), "cut_header.jpg"),
    "empty": (_bytes("empty.jpg", b""), "0 bytes"),
    "text": (_bytes("text.jpg", b"this is no photo\n" * 40), "not a picture"),
    "random bytes": (_bytes("noise.png", np.random.default_rng(0).bytes(5000)), "not a picture"),
    "PostScript": (_bytes("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n"), "not a picture"),
    "one pixel": (_bytes("one.ppm", b"P6 1 1 255\n\0\0\0"), "1 x 1 px"),
    "narrow": (_bytes("narrow.pgm", b"P5 400 8 255\n" + bytes(3200)), "400 x 8 px"),
    "huge": (_bytes("huge.png", huge_png(20_000, 12_000)), "240 megapixels"),
    "missing": (lambda stem, rgb: stem.with_name("absent.jpg"), "no such file"),
    "below a file": (lambda stem, rgb: _bytes("plain.txt", b"x")(stem, rgb) / "photo.jpg", "plain.txt/photo.jpg"),
    "endless device": (lambda stem, rgb: Path("/dev/zero"), "no regular file"),
    "unreadable": (lambda stem, rgb: Path("/proc/self/mem"), "/proc/self/mem"),
}


def save_turned(path: Path, upright: np.ndarray, orientation: int) -> None:
    """The picture (H, W, 3) uint8, stored as `orientation` says. JPEG at the highest quality, else without loss."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(to_stored(upright, orientation))).save(path, exif=exif, quality=98)
