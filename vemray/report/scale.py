"""Scale bars."""

from __future__ import annotations

import math

import numpy as np


def bar_length(width_nm: float) -> tuple[float, str]:
    """The length (nm) of 1, 2 or 5 times a power of ten that is nearest below a quarter of the width, and how to write it."""
    target = max(width_nm, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(target))
    length = next(m * power for m in (5, 2, 1) if m * power <= target * (1 + 1e-9))
    return length, f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"


def scale_bar(picture: np.ndarray, pixel_nm: float, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """A copy (RGB uint8) with a scale bar and its length at the lower left, on a dark shade so that it shows on any picture."""
    from PIL import Image, ImageDraw, ImageFont

    grey = picture[..., None].repeat(3, axis=-1) if picture.ndim == 2 else picture
    image = Image.fromarray(grey).convert("RGB")
    h, w = picture.shape[:2]
    length, text = bar_length(w * pixel_nm)
    bar, thick, pad = length / pixel_nm, max(2, h // 120), max(3, min(h, w) // 50)
    draw = ImageDraw.Draw(image, "RGBA")
    from matplotlib.font_manager import findfont

    font = ImageFont.truetype(findfont("DejaVu Sans"), max(9, min(h, w) // 24))  # matplotlib ships it; Pillow's own has no µ
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    height = bottom - top + thick + 3 * pad
    x, y = pad * 2, h - pad - height
    draw.rectangle((pad, y, pad + max(bar, right - left) + 2 * pad, h - pad), fill=(0, 0, 0, 130))
    draw.text((x - left, y + pad - top), text, font=font, fill=(*colour, 255))
    draw.rectangle((x, h - 2 * pad - thick, x + round(bar) - 1, h - 2 * pad - 1), fill=(*colour, 255))
    return np.asarray(image)
