"""Pictures of every kind become 8-bit RGB of the size asked for."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwaga.data import DataConfig, open_data
from hwaga.data.pictures import Unusable, fit, quiet, read


def one(path: Path, shape: tuple[int, int] = (8, 8), how: str = "crop") -> np.ndarray:
    with quiet():
        return read(path, shape, how)[0]


def _is(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 1) -> bool:
    return bool((np.abs(pixels.astype(int) - np.array(colour)[:, None, None]) <= tolerance).all())


def test_transparent_pictures_lie_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (8, 8), (100, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("L", (8, 8), 7).save(tmp_path / "l.png", transparency=7)
    assert _is(one(tmp_path / "clear.png"), (255, 255, 255))
    assert _is(one(tmp_path / "half.png"), (255, 127, 127))
    for name in ("la.png", "p.png", "l.png"):
        assert _is(one(tmp_path / name), (255, 255, 255))


def test_grey_palette_and_print_colours(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "l.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    assert _is(one(tmp_path / "l.png"), (90, 90, 90))
    assert _is(one(tmp_path / "bits.png"), (255, 255, 255))
    assert _is(one(tmp_path / "p.png"), (0, 0, 255))
    assert _is(one(tmp_path / "cmyk.jpg"), (255, 0, 0), 4)
    assert _is(one(tmp_path / "cmyk.tif"), (0, 255, 255))


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).save(tmp_path / "grey.tif")
    expected = np.rint(ramp / 257)
    for name in ("grey.png", "grey.tif"):
        assert (np.abs(one(tmp_path / name)[0] - expected) <= 1).all()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    assert _is(one(tmp_path / "float.tif"), (128, 128, 128))
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(Unusable, match="not finite"):
        one(tmp_path / "nan.tif")


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.png"):
        assert _is(one(tmp_path / name), (255, 0, 0))


def test_the_orientation_in_exif_is_honoured(tmp_path):
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    with quiet():
        pixels, size = read(tmp_path / "turned.png", (16, 8), "crop")
    assert size == (16, 8)
    assert (pixels[:, :8] == 255).all() and (pixels[:, 8:] == 0).all()


def test_broken_exif_does_not_cost_the_picture(tmp_path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert _is(one(tmp_path / "a.png"), (1, 2, 3))


def test_the_kind_is_told_by_content_and_not_by_name(tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "really.jpg.txt")
    assert _is(one(tmp_path / "really.jpg.txt"), (9, 9, 9))


def test_formats_that_start_other_programs_are_not_opened(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(Unusable, match="not a picture"):
        one(tmp_path / "a.eps")


def test_ways_to_fit(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (0, 255, 0)  # a green middle between black ends
    image = Image.fromarray(wide)
    assert _is(fit(image, (10, 10), "crop"), (0, 255, 0), 30)
    padded = fit(image, (30, 30), "pad")
    assert (padded[:, :10] == 255).all() and (padded[:, 20:] == 255).all() and _is(padded[:, 11:19, 11:19], (0, 255, 0))
    stretched = fit(image, (30, 30), "stretch")
    assert (
        stretched.shape == (3, 30, 30) and _is(stretched[:, :, 13:17], (0, 255, 0)) and (stretched[:, :, :7] == 0).all()
    )
    assert fit(Image.new("RGB", (5000, 1)), (7, 9), "pad").shape == (3, 7, 9)
    assert (fit(image, (10, 30), "crop") == wide.transpose(2, 0, 1)).all()


def test_no_warning_reaches_the_user_and_filters_are_given_back(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    open_data(DataConfig(source=str(tmp_path), size=8), "all")
    assert warnings.filters == before
