"""Random views of a training image, drawn as Keras' ImageDataGenerator draws them."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError, unknown

_BELOW_1 = math.nextafter(1, 0)
_LIMITS = {
    "rotation": (180.0, "degrees from 0 to 180, e.g. rotation=40"),
    "shift": (_BELOW_1, "a fraction of the side from 0 to below 1, e.g. shift=0.2"),
    "shear": (90.0, "degrees from 0 to 90, e.g. shear=0.2"),
    "zoom": (_BELOW_1, "a fraction from 0 to below 1, e.g. zoom=0.2"),
}
_EXAMPLE = "a list such as rotation=40,shift=0.2,flip"


def _number(name: str, value: str | float) -> float:
    """The value of a field as a number; raises UserError if it is out of range."""
    limit, expected = _LIMITS[name]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= limit:
        raise UserError(f"--augment {name}={value}: expected {expected}")
    return number


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a view may differ from its image. Each value is drawn uniformly from its range; 0 disables it.

    Raises:
        UserError: a number is out of its range.
    """

    rotation: float = 0.0
    """Largest rotation in degrees, in either direction."""
    shift: float = 0.0
    """Largest shift, as a fraction of the width and of the height; the two shifts are drawn independently."""
    shear: float = 0.0
    """Largest shear in degrees, in either direction, like `shear_range` of ImageDataGenerator. The 0.2 that
    many scripts pass there was meant as a fraction; as degrees it has almost no effect."""
    zoom: float = 0.0
    """A view covers 1 - zoom to 1 + zoom of each axis, drawn independently: the aspect ratio changes."""
    flip: bool = False
    """Whether half of the views are mirrored left to right."""

    def __post_init__(self) -> None:
        for name in _LIMITS:
            _number(name, getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read the value of `--augment`: a name in `AUGMENTATIONS`, or a list like `rotation=40,flip`.

        Raises:
            UserError: it is neither.
        """
        if text in AUGMENTATIONS:
            return AUGMENTATIONS[text]
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not name:
                names = ", ".join(AUGMENTATIONS)
                raise UserError(f"--augment {text!r}: expected a name ({names}) or {_EXAMPLE}")
            if name in values:
                raise UserError(f"--augment {text}: {name} is given twice; remove one")
            if name in AUGMENTATIONS and name not in known:
                raise UserError(f"--augment {text}: {name} stands alone; write only {name}, or {_EXAMPLE}")
            if name not in known:
                raise unknown("augmentation", name, {*known, *AUGMENTATIONS})
            if name == "flip" and equals:
                raise UserError(f"--augment {part.strip()}: flip takes no value; write flip or leave it out")
            values[name] = name == "flip" or _number(name, value)
        return cls(**values)


AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": Augmentation(flip=True),
    "light": Augmentation(rotation=30, shift=0.1, shear=0.2, zoom=0.2, flip=True),
    "strong": Augmentation(rotation=40, shift=0.2, shear=0.2, zoom=0.2, flip=True),
}
"""The augmentations that have a name."""


@dataclass(frozen=True)
class Views:
    """The views of all images, which are the same in every process and on every machine.

    Only on another kind of processor may a pixel in many thousands be rounded differently.
    """

    augmentation: Augmentation
    seed: int

    def view(self, pixels: npt.NDArray[np.uint8], path: str, number: int) -> npt.NDArray[np.uint8]:
        """One view of one image. It depends only on the seed, the path and the number.

        Args:
            pixels: uint8 of shape (height, width, 3); the array is not modified.
            path: the path of the image in the listing.
            number: the epoch, or the index of the view where several are stored.

        Returns:
            uint8 of the same shape; `pixels` itself if the view equals the image.
        """
        draw = _draw(self.seed, path, number)
        height, width = pixels.shape[:2]
        matrix = _matrix(self.augmentation, draw, height, width)
        if not np.array_equal(matrix, np.eye(3)):
            # OpenCV is a large package, but NumPy takes three times as long, and SciPy ten times.
            import cv2

            # There are already as many processes as cores.
            cv2.setNumThreads(0)
            warped = cv2.warpAffine(
                pixels,
                matrix[:2],
                (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            pixels = np.asarray(warped, np.uint8)
        if self.augmentation.flip and draw[6] < 0:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels


def _draw(seed: int, path: str, number: int) -> npt.NDArray[np.float64]:
    """Seven numbers from -1 to 1. All are always drawn, so that enabling one change alters no other."""
    key = f"{seed} {number} {path}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).uniform(-1, 1, 7)


def _matrix(
    augmentation: Augmentation, draw: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.float64]:
    """The (3, 3) matrix that maps a point (x, y, 1) of the view to its source in the image.

    The product is that of Keras' `apply_affine_transform`, where x is the column too. Keras takes the shift
    and the centre of the columns from the height, which is right only for square images; tlray does not.
    """
    angle, shear = math.radians(augmentation.rotation * draw[0]), math.radians(augmentation.shear * draw[3])
    shift_x, shift_y = augmentation.shift * width * draw[1], augmentation.shift * height * draw[2]
    zoom_x, zoom_y = 1 + augmentation.zoom * draw[4], 1 + augmentation.zoom * draw[5]
    x, y = (width - 1) / 2, (height - 1) / 2
    steps = (
        [[1, 0, x], [0, 1, y], [0, 0, 1]],
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        [[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]],
        [[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]],
        [[zoom_x, 0, 0], [0, zoom_y, 0], [0, 0, 1]],
        [[1, 0, -x], [0, 1, -y], [0, 0, 1]],
    )
    return functools.reduce(np.matmul, [np.array(step, np.float64) for step in steps])
