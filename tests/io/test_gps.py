"""GPS tags and XMP of drones: what is read, what is refused, and the gimbal's angles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from dune_cli.geometry import poses
from dune_cli.io import exif, gps
from dune_cli.io.gps import gimbal_rotation, read_whereabouts
from support.gps_photos import exif_block

PLACE = (-33.856784, 151.215297, 41.5)


def photo(path: Path, block: Image.Exif | None, xmp: str = "", orientation: int = 1) -> Path:
    if block is not None:
        block[exif.ORIENTATION] = orientation
    more = {"xmp": f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d {xmp}/></x:xmpmeta>'.encode()} if xmp else {}
    tags = {"exif": block} if block is not None else {}
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, **tags, **more)
    return path


@pytest.mark.parametrize("place", [PLACE, (48.137, 11.575, 520.0), (0.5, -0.25, -3.25)])
def test_a_position_and_back(place: tuple[float, float, float], tmp_path: Path) -> None:
    fix = read_whereabouts(photo(tmp_path / "a.jpg", exif_block(place))).fix
    assert fix is not None and not fix.stated and fix.sd_m == gps.SD_M
    assert (fix.latitude_deg, fix.longitude_deg) == pytest.approx(place[:2], abs=1e-9)
    assert fix.height_m == pytest.approx(place[2], abs=1e-4)


@pytest.mark.parametrize(
    "tags",
    [
        {gps.LATITUDE: (IFDRational(91, 1), IFDRational(0, 1), IFDRational(0, 1))},
        {gps.LATITUDE: (IFDRational(1, 0), IFDRational(0, 1), IFDRational(0, 1))},
        {gps.LATITUDE_REF: "X"},
        {gps.LONGITUDE_REF: ""},
        {gps.STATUS: "V"},
        {gps.DATUM: "TOKYO"},
        {gps.LATITUDE: (IFDRational(0, 1),) * 3, gps.LONGITUDE: (IFDRational(0, 1),) * 3},
    ],
)
def test_tags_that_are_no_position(tags: dict[int, object], tmp_path: Path) -> None:
    assert read_whereabouts(photo(tmp_path / "a.jpg", exif_block(PLACE, tags))).fix is None


def test_photos_without_tags_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    for path in (photo(tmp_path / "a.jpg", None), tmp_path / "b.jpg", tmp_path / "none.jpg"):
        found = read_whereabouts(path)
        assert found.fix is None and found.enu_from_cam is None


def test_a_stated_accuracy(tmp_path: Path) -> None:
    """Of EXIF: the radius of 68 %; of Pix4D's XMP; of DJI's RTK, which also has more digits."""
    block = exif_block(PLACE, {gps.POSITIONING_ERROR: IFDRational(303, 100)})
    fix = read_whereabouts(photo(tmp_path / "a.jpg", block)).fix
    assert fix is not None and fix.stated and fix.sd_m == pytest.approx((2, 2, 4))
    xmp = 'Camera:GPSXYAccuracy="0.05" Camera:GPSZAccuracy="0.1"'
    fix = read_whereabouts(photo(tmp_path / "b.jpg", exif_block(PLACE), xmp)).fix
    assert fix is not None and fix.sd_m == (0.05, 0.05, 0.1)
    xmp = (
        'drone-dji:GpsLatitude="-33.856784123" drone-dji:GpsLongtitude="+151.215297456" '
        'drone-dji:AbsoluteAltitude="+60.125" drone-dji:RtkFlag="50" drone-dji:RtkStdLon="0.011" '
        'drone-dji:RtkStdLat="0.012" drone-dji:RtkStdHgt="0.023"'
    )
    fix = read_whereabouts(photo(tmp_path / "c.jpg", exif_block(PLACE), xmp)).fix
    assert fix is not None and fix.stated and fix.sd_m == (0.011, 0.012, 0.023)
    assert (fix.latitude_deg, fix.longitude_deg, fix.height_m) == (-33.856784123, 151.215297456, 60.125)
    elsewhere = xmp.replace("-33.85", "-43.85")
    fix = read_whereabouts(photo(tmp_path / "d.jpg", exif_block(PLACE), elsewhere)).fix
    assert fix is not None and fix.latitude_deg == pytest.approx(PLACE[0], abs=1e-9)


def test_gimbal_angles(tmp_path: Path) -> None:
    """Level and to the north; straight down with the top of the photo to the east; the photo turned by EXIF."""
    level = gimbal_rotation(0, 0, 0)
    np.testing.assert_allclose(level, [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-12)
    down = gimbal_rotation(90, -90, 0)
    np.testing.assert_allclose(down[:, 2], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(-down[:, 1], [1, 0, 0], atol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        yaw, pitch, roll = rng.uniform([-180, -90, -30], [180, 30, 30])
        ahead = gimbal_rotation(yaw, pitch, roll)[:, 2]
        assert np.degrees(np.arctan2(ahead[0], ahead[1])) == pytest.approx(yaw)
        assert np.degrees(np.arcsin(ahead[2])) == pytest.approx(pitch)
        assert np.linalg.det(gimbal_rotation(yaw, pitch, roll)) == pytest.approx(1)
    xmp = 'drone-dji:GimbalYawDegree="+30.0" drone-dji:GimbalPitchDegree="-60.0" drone-dji:GimbalRollDegree="0.0"'
    stored = read_whereabouts(photo(tmp_path / "a.jpg", exif_block(PLACE), xmp)).enu_from_cam
    upright = read_whereabouts(photo(tmp_path / "b.jpg", exif_block(PLACE), xmp, orientation=6)).enu_from_cam
    assert stored is not None and upright is not None
    np.testing.assert_allclose(stored, gimbal_rotation(30, -60, 0))
    assert np.degrees(poses.rotation_angle(stored.T @ upright)) == pytest.approx(90)
    np.testing.assert_allclose(upright[:, 2], stored[:, 2])
    assert read_whereabouts(photo(tmp_path / "c.jpg", exif_block(PLACE), xmp, orientation=7)).enu_from_cam is None
