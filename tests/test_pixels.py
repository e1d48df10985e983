"""Pixels of image files: every mode of Pillow is scaled rightly or refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adversarial_lightning.datamodules import ImageFolder
from adversarial_lightning.datamodules.files import FileImages, eight_bit

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)  # black to white
GREY = Image.fromarray(RAMP)


def deep(mode: str, top: int = 65535) -> Image.Image:
    order = ">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2"
    return Image.frombytes(mode, (16, 16), np.round(RAMP / 255 * top).astype(order).tobytes())


def alpha(mode: str, a: int = 255) -> Image.Image:
    image = GREY.convert("LA" if mode in ("LA", "La") else "RGBA")
    image.putalpha(a)
    return image.convert(mode)


MADE: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: Image.fromarray(RAMP > 127),
    **{m: (lambda m=m: GREY.convert(m)) for m in ("L", "P", "RGB", "RGBX", "CMYK", "YCbCr")},
    **{m: (lambda m=m: GREY.convert("RGB").convert(m)) for m in ("LAB", "HSV")},
    **{m: (lambda m=m: alpha(m)) for m in ("LA", "La", "RGBA", "RGBa")},
    "PA": lambda: GREY.convert("PA"),
    **{m: (lambda m=m: deep(m)) for m in ("I;16", "I;16L", "I;16B", "I;16N")},
    "F": lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
    "I": lambda: Image.fromarray(RAMP.astype(np.int32)),
}


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_is_scaled_or_refused(mode: str) -> None:
    image = MADE[mode]()
    assert image.mode == mode
    if mode == "I":  # of a file that says nothing of its range
        with pytest.raises(ValueError, match="range is not known"):
            eight_bit(image, "L")
        return
    right = np.where(RAMP > 127, 255, 0) if mode == "1" else RAMP.astype(int)
    tolerance = {"LAB": 3, "YCbCr": 1}.get(mode, 0)
    grey, colour = (np.asarray(eight_bit(image, m)).astype(int) for m in ("L", "RGB"))  # type: ignore[arg-type]
    assert np.abs(grey - right).max() <= tolerance and np.abs(colour - right[..., None]).max() <= tolerance


def wide(top: float, low: float = 0.0) -> Image.Image:
    return Image.fromarray((low + RAMP / 255 * (top - low)).astype(np.float32))


def turned() -> Image.Image:
    image = GREY.copy()
    image.getexif()[274] = 6
    return image


@pytest.mark.parametrize(
    "name,image,extra,says",
    [
        ("16.png", deep("I;16"), {}, None),
        ("16.tif", deep("I;16"), {}, None),
        ("16.pgm", deep("I;16"), {}, None),
        ("float.tif", wide(1.0), {}, None),
        ("opaque.png", alpha("RGBA"), {}, None),
        ("palette.png", GREY.convert("P"), {"transparency": 255}, "transparent"),
        ("grey.png", GREY, {"transparency": 7}, "transparent"),
        ("deep.png", deep("I;16"), {"transparency": 257}, "transparent"),
        ("veil.png", alpha("RGBA", 254), {}, "transparent"),
        ("veil.webp", alpha("RGBA", 10), {"lossless": True}, "transparent"),
        ("int.tif", Image.fromarray(RAMP.astype(np.int32)), {}, "32-bit integers"),
        ("bytes.tif", wide(255.0), {}, r"\[0, 255\].*\[0, 1\]"),
        ("signed.tif", wide(1.0, -1.0), {}, r"\[-1, 1\]"),
        ("nan.tif", wide(float("nan")), {}, "nan"),
        ("turned.png", turned(), {"exif": turned().getexif()}, None),  # EXIF is not applied
        ("cmyk.jpg", GREY.convert("RGB").convert("CMYK"), {"quality": 100}, None),
    ],
    ids=lambda v: v if isinstance(v, str) and "." in v else "",
)
def test_files(name: str, image: Image.Image, extra: dict[str, Any], says: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    image.save(path, **extra)
    for channels in (1, 3):
        files = FileImages([str(path)], torch.zeros(1), 16, channels)
        if says:
            with pytest.raises(ValueError, match=f"{name} is not a readable image .*{says}"):
                files[0]
        else:
            off = (files[0][0] - torch.from_numpy(RAMP) / 255).abs().max()
            assert float(off) < (0.02 if name.endswith("jpg") else 1e-6)


@pytest.mark.parametrize("bits,photometric,says", [(12, 1, None), (16, 0, "white is zero")])
def test_tiffs_that_say_what_their_numbers_mean(bits: int, photometric: int, says: str | None) -> None:
    image = deep("I;16", 2**bits - 1)
    image.tag_v2 = {258: (bits,), 262: photometric}  # type: ignore[attr-defined]
    if says:
        with pytest.raises(ValueError, match=says):
            eight_bit(image, "L")
    else:
        assert np.array_equal(np.asarray(eight_bit(image, "L")), RAMP)


@pytest.mark.parametrize("cache", [False, True])
def test_image_folders_scale(cache: bool, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                deep("I;16").save(tmp_path / part / name / f"{i}.png")
    x, _, _ = ImageFolder(str(tmp_path), channels=1, image_size=16, val_size=1, cache=cache).dataset("test")[0]
    assert torch.equal(x[0], torch.from_numpy(RAMP) / 255)
