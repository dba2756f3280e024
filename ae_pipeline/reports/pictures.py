"""Pictures of a row that is an image: itself, its reconstruction and its residual map, as PNG."""

import base64
import io
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_COLOURS = "inferno"
_FRAME = "#00c8ff"
_LEAST_END = 10.0
_GAP = 6

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scale:
    """What pictures have in common, so that they can be compared with each other.

    Residual maps are black where the residual is as usual or less; from there on the colours are logarithmic.

    Attributes:
        end: What the brightest colour stands for, in times of the usual residual.
        white: What white stands for in images and reconstructions, of 0 to 1.
    """

    end: float
    white: float

    @classmethod
    def up_to(cls, residual: float, brightness: float) -> "Scale":
        """Takes the next 10, 30, 100, 300, … that is as high as the residual, and makes the brightness white."""
        end = _LEAST_END
        while end < residual:
            end = end * 3 if f"{end:e}".startswith("1") else end / 3 * 10
        return cls(end, brightness or 1.0)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Figures along the scale, and where each stands, 0 to 1."""
        powers = range(round(math.log10(self.end)) + 1)
        steps = [step for power in powers for step in (10**power, 3 * 10**power) if step <= self.end * 1.001]
        return [(f"{step:,}", math.log(step) / math.log(self.end)) for step in steps]

    @property
    def colours(self) -> list[str]:
        """Colours along the scale, evenly apart, as CSS writes them."""
        palette = _palette()
        return ["#{:02x}{:02x}{:02x}".format(*palette[index]) for index in range(0, 256, 15)]

    def heat(self, residual: Floats) -> Image.Image:
        """Draws a residual map, (height, width)."""
        places = np.log(np.clip(residual, 1, self.end)) / math.log(self.end)
        picture = Image.fromarray(np.rint(places * 255).astype(np.uint8))
        picture.putpalette(_palette().tobytes())
        return picture

    def shades(self, image: Floats) -> Image.Image:
        """Draws an image, (height, width, channels), in RGB by its first three channels, or in grey by their mean."""
        channels = image.shape[2]
        shown = image[:, :, :3] if channels >= 3 else image.mean(2)
        return Image.fromarray(np.rint(np.clip(shown / self.white, 0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True)
class Drawing:
    """What is to be shown of a row.

    Attributes:
        image: On the scale 0 to 1, (height, width, channels).
        reconstruction: Likewise.
        residual: In times of the usual, (height, width).
        spot: Left, top, width and height of the strangest window, as shares of the picture's width and height.
        highest: Residual there.
    """

    image: Floats
    reconstruction: Floats
    residual: Floats
    spot: tuple[float, float, float, float]
    highest: float


@dataclass(frozen=True)
class Panel:
    """A row's pictures as they are shown.

    Attributes:
        row_id: Of the row.
        score: Its score, nats.
        is_anomaly: Whether it is flagged.
        is_known_anomaly: What the label says of it, None where that is unknown.
        drawing: What is shown.
        scale: How.
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
        """The same as PNG in data: addresses."""
        image, reconstruction, residual = self.pictures
        return as_address(image), as_address(reconstruction), as_address(residual)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Gives width and height at which a picture just fits into a space, its pixels square."""
        pixels_high, pixels_wide = self.drawing.residual.shape
        scale = min(width / pixels_wide, height / pixels_high)
        return max(1, round(pixels_wide * scale)), max(1, round(pixels_high * scale))

    def strip(self, height: int) -> Image.Image:
        """Draws all three beside each other, the strangest spot framed in the first and the last."""
        size = width, height = self.size(3 * height, height)
        strip = Image.new("RGB", (3 * width + 2 * _GAP, height), "white")
        left, top, *span = (round(share * side) for share, side in zip(self.drawing.spot, size * 2, strict=True))
        for index, picture in enumerate(self.pictures):
            enlarged = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            if index != 1:
                frame = (left, top, left + span[0] - 1, top + span[1] - 1)
                ImageDraw.Draw(enlarged).rectangle(frame, outline=_FRAME)
            strip.paste(enlarged, (index * (width + _GAP), 0))
        return strip


def as_address(picture: Image.Image) -> str:
    """Gives a picture as PNG in a data: address."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _palette() -> Bytes:
    import matplotlib

    colours: Bytes = matplotlib.colormaps[_COLOURS](np.arange(256), bytes=True)[:, :3]
    return colours
