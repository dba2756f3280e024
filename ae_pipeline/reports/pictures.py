"""Pictures of a row that is an image: the image, its reconstruction and its residual map, as PNG."""

import base64
import functools
import io
import json
import math
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_FRAME = "#00c8ff"
_MIN_END = 10.0
_GAP = 6

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scale:
    """Scale that all pictures of a page share, so that they are comparable.

    Residual maps are black up to the usual residual. Above it, their colors are logarithmic.

    Attributes:
        end: Residual of the brightest color, as a multiple of the usual residual.
        white: Value of white in images and reconstructions, 0 to 1.
    """

    end: float
    white: float

    @classmethod
    def up_to(cls, residual: float, brightness: float) -> "Scale":
        """Return the scale that ends at the first of 10, 30, 100, 300, … that the residual does not exceed.

        Args:
            residual: Highest residual, as a multiple of the usual residual.
            brightness: Highest value of an image, 0 to 1, which becomes white.

        >>> Scale.up_to(31.0, 1.0)
        Scale(end=100.0, white=1.0)
        """
        end = _MIN_END
        while end < residual:
            end = end * 3 if f"{end:e}".startswith("1") else end / 3 * 10
        return cls(end, brightness or 1.0)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Labels of the scale and their positions, 0 to 1."""
        powers = range(round(math.log10(self.end)) + 1)
        steps = [step for power in powers for step in (10**power, 3 * 10**power) if step <= self.end * 1.001]
        return [(f"{step:,}", math.log(step) / math.log(self.end)) for step in steps]

    @property
    def colours(self) -> list[str]:
        """Evenly spaced colors of the scale, for CSS."""
        palette = _palette()
        return ["#{:02x}{:02x}{:02x}".format(*palette[index]) for index in range(0, 256, 15)]

    def heat(self, residual: Floats) -> Image.Image:
        """Return a residual map, (height, width), as a picture."""
        positions = np.log(np.clip(residual, 1, self.end)) / math.log(self.end)
        picture = Image.fromarray(np.rint(positions * 255).astype(np.uint8))
        picture.putpalette(_palette().tobytes())
        return picture

    def shades(self, image: Floats) -> Image.Image:
        """Return an image, (height, width, channels), as a picture.

        The first three channels are red, green and blue. With fewer channels, the picture shows their mean in gray.
        """
        channels = image.shape[2]
        values = image[:, :, :3] if channels >= 3 else image.mean(2)
        return Image.fromarray(np.rint(np.clip(values / self.white, 0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Arrays that the pictures of a row show.

    Attributes:
        image: Image, 0 to 1, (height, width, channels).
        reconstruction: Reconstruction, of the same shape and scale.
        residual: Residual map, as a multiple of the usual residual, (height, width).
        spot: Left, top, width and height of the window with the highest heat, relative to the size of the picture.
        highest: Heat of that window.
    """

    image: Floats
    reconstruction: Floats
    residual: Floats
    spot: tuple[float, float, float, float]
    highest: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Pictures of a row, side by side.

    Attributes:
        row_id: Identity of the row.
        score: Score, nats.
        is_anomaly: Whether the row is flagged.
        is_known_anomaly: Whether the label marks the row as an anomaly; None if unknown.
        drawing: Arrays to show.
        scale: Scale of the pictures.
    """

    row_id: str
    score: float
    is_anomaly: bool
    is_known_anomaly: bool | None
    drawing: Drawing
    scale: Scale

    @cached_property
    def pictures(self) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Image, reconstruction and residual map."""
        drawing, scale = self.drawing, self.scale
        return scale.shades(drawing.image), scale.shades(drawing.reconstruction), scale.heat(drawing.residual)

    @cached_property
    def addresses(self) -> tuple[str, str, str]:
        """The pictures as PNG in `data:` URLs."""
        image, reconstruction, residual = self.pictures
        return as_address(image), as_address(reconstruction), as_address(residual)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the largest width and height of a picture with square pixels that fits into a box.

        Args:
            width: Width of the box.
            height: Height of the box.
        """
        pixels_high, pixels_wide = self.drawing.residual.shape
        scale = min(width / pixels_wide, height / pixels_high)
        return max(1, round(pixels_wide * scale)), max(1, round(pixels_high * scale))

    def strip(self, height: int) -> Image.Image:
        """Return the three pictures side by side, with the window of the highest residual framed.

        Args:
            height: Height of the strip, pixels.
        """
        size = width, height = self.size(3 * height, height)
        strip = Image.new("RGB", (3 * width + 2 * _GAP, height), "white")
        # A small spot of a large image would round to no pixel at all.
        spot = [round(share * side) for share, side in zip(self.drawing.spot, size * 2, strict=True)]
        left, top = min(spot[0], width - 1), min(spot[1], height - 1)
        right, bottom = left + max(spot[2], 1) - 1, top + max(spot[3], 1) - 1
        for index, picture in enumerate(self.pictures):
            enlarged = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            if index != 1:
                ImageDraw.Draw(enlarged).rectangle((left, top, right, bottom), outline=_FRAME)
            strip.paste(enlarged, (index * (width + _GAP), 0))
        return strip


def as_address(picture: Image.Image) -> str:
    """Return a picture as PNG in a `data:` URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _palette() -> Bytes:
    """Return the 256 colors of matplotlib's colormap `inferno` (CC0), which is perceptually uniform; (256, 3)."""
    colors = json.loads(files("ae_pipeline").joinpath("reports/inferno.json").read_text(encoding="utf-8"))["colors"]
    return np.array([tuple(bytes.fromhex(color[1:])) for color in colors], dtype=np.uint8)
