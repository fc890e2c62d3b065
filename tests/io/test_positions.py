"""Tables of positions: the forms that are read, names, and one sentence for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.positions import read_positions

CONTENTS = {
    "photo,lat,lon,alt\na.jpg,48.1,11.5,520\nb.jpg,48.2,11.6,521\n": (48.1, 11.5, 520.0),
    "Image;Longitude;Latitude;Altitude;sd\na.jpg;11.5;48.1;520;0.5\nb.jpg;11.6;48.2;521;\n": (48.1, 11.5, 520.0),
    "filename\teasting\tnorthing\televation\na.jpg\t691000\t5334000\t520\nb.jpg\t1\t2\t3\n": (
        691000.0,
        5334000.0,
        520.0,
    ),
    "# surveyed\nname x y z\na.jpg 1 2 3\n\nb.jpg 4 5 6\n": (1.0, 2.0, 3.0),
    "EPSG:4326\na.jpg 11.5 48.1 520\nb.jpg 11.6 48.2 521 10 -90 0 0.5 1.0\n": (48.1, 11.5, 520.0),
    "photo;lat;lon;alt\na.jpg;48,1;11,5;520,0\nb.jpg;48,2;11,6;521\n": (48.1, 11.5, 520.0),
    "ImageName|Latitude [decimal degrees]|Longitude (deg)|Altitude (m)\na.jpg|48.1|11.5|520\nb.jpg|48.2|11.6|521\n": (
        *(48.1, 11.5),
        520.0,
    ),
    "# CoordinateSystem: WGS 84 (EPSG::4326)\n#Label,X/Longitude,Y/Latitude,Z/Altitude,Yaw\n"
    "a.jpg,11.5,48.1,520,0\nb.jpg,11.6,48.2,521,0\n": (48.1, 11.5, 520.0),
    "# CoordinateSystem: WGS 84 / UTM zone 32N (EPSG::32632)\n#Label,X/Easting,Y/Northing,Z/Altitude\n"
    "a.jpg,691000,5334000,520\nb.jpg,691001,5334001,521\n": (691000.0, 5334000.0, 520.0),
    "WGS84 UTM 32N\na.jpg 691000 5334000 520\nb.jpg 691001 5334001 521\n": (691000.0, 5334000.0, 520.0),
    "EPSG:32632\na.jpg 691000 5334000 520\nb.jpg 691001 5334001 521\n": (691000.0, 5334000.0, 520.0),
    'photo,lat,lon,alt\n"a.jpg",48.1,11.5,520\nc.jpg,,,\nb.jpg,48.2,11.6,521\n': (48.1, 11.5, 520.0),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_forms(content: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(content)
    table = read_positions(tmp_path / "p.csv")
    assert set(table.positions) == {"a.jpg", "b.jpg"}
    assert table.positions["a.jpg"].coordinates == CONTENTS[content]
    assert table.geodetic == (CONTENTS[content][0] == 48.1)
    assert table.crs == ("EPSG:32632" if "32632" in content or "UTM 32N" in content else None)


def test_standard_deviations(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("photo,x,y,z,sd_xy,sd_z\na,1,2,3,0.02,0.05\nb,1,2,3,0.1,\n")
    found = read_positions(tmp_path / "p.csv").positions
    assert found["a"].sd_m == (0.02, 0.02, 0.05) and found["b"].sd_m == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("photo,lat,lon,alt\n", "holds no positions"),
        ("a,b,c\n1,2,3\n", "has the columns a, b, c; allowed: a table with the columns photo, lat, lon, alt"),
        (
            "photo,lat,lon,alt\na.jpg,148.1,11.5,5\n",
            "line 2, has latitude 148.1 and longitude 11.5.*seem to be swapped",
        ),
        ("photo,lat,lon,alt\na.jpg,148.1,211.5,5\n", "at most 90 and 180 degrees are allowed: give degrees"),
        ("photo,lat,lon,alt\na.jpg,48.1,x,5\n", "line 2, has x where a number is needed"),
        ("photo,lat,lon,alt\na.jpg,nan,1,5\n", "line 2, has nan where a number is needed"),
        ("photo;x;y;z\na.jpg;1,500,000;2;3\n", "has 1.500.000 where a number is needed; decimals have a point"),
        ("photo|lat|lon|alt (ft)\na.jpg|1|2|3\n", "has no height for a.jpg"),
        ("photo,x,y,z\na.jpg,1,2,3\na.jpg,1,2,3\n", "line 3, names a.jpg for the second time"),
        ("photo,x,y\na.jpg,1,2\nb.jpg,1,2\n", "no height for a.jpg and 1 more; add them as alt or z"),
        ("photo,x,y,z\na.jpg,1e12,2,3\n", "coordinates beyond 1e.08 m"),
        ("photo,x,y,z,sd\na.jpg,1,2,3,-1\n", "has the standard deviations -1 and -1"),
        ("photo,x,y,z\n,1,2,3\n", "line 2, names no photo"),
        ("EPSG:32632\na.jpg 1\n", "line 2, has 2 words"),
        ("photo,lat,lon,x,y,z\na.jpg,1,2,3,4,5\n", "has both latitudes and x, y"),
    ],
)
def test_other_files_are_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_positions(tmp_path / "p.csv")
    assert "\n" not in str(error.value)


def test_names_are_found_as_those_of_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("photo,x,y,z\nright/a.jpg,1,2,3\nb,4,5,6\nnone.jpg,7,8,9\n")
    table = read_positions(tmp_path / "p.csv")
    names = ["x/left/a.jpg", "x/right/a.jpg", "x/b.jpg"]
    found = table.of_photos(names)
    assert {name: one.coordinates[0] for name, one in found.items()} == {names[1]: 1.0, names[2]: 4.0}
    notes = capsys.readouterr().err
    assert "1 of its 3 positions belong to none of the photos" in notes
    assert "has no position for 1 of 3 photos: a.jpg" in notes
    with pytest.raises(
        UserError, match=r"has a position for none of the 1 photos; it names right/a\.jpg, b, none\.jpg"
    ):
        table.of_photos(["x/c.jpg"])
