"""Random views of a training image, as Keras' ImageDataGenerator makes them."""

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
    """The value of a field.

    Raises:
        UserError: it is not a number in the field's range.
    """
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
    """How far a view may be from its image. Each is drawn evenly from its range; 0 is none of it.

    Raises:
        UserError: a number is out of its range.
    """

    rotation: float = 0.0
    """Degrees, to either side."""
    shift: float = 0.0
    """Fraction of the width and of the height, each drawn for itself, to either side."""
    shear: float = 0.0
    """Degrees, to either side, as ImageDataGenerator's `shear_range`: the 0.2 that is often written there
    was meant as a fraction and is next to nothing."""
    zoom: float = 0.0
    """Each axis covers 1 - zoom to 1 + zoom of the image, drawn for itself: the aspect ratio changes."""
    flip: bool = False
    """Left to right, half of the time."""

    def __post_init__(self) -> None:
        for name in _LIMITS:
            _number(name, getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """What `--augment` says: a name in `AUGMENTATIONS`, or a list as `rotation=40,shift=0.2,flip`.

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
                raise UserError(f"--augment {text}: {name} is there twice, leave one")
            if name in AUGMENTATIONS and name not in known:
                raise UserError(f"--augment {text}: {name} stands alone; write only {name}, or {_EXAMPLE}")
            if name not in known:
                raise unknown("augmentation", name, {*known, *AUGMENTATIONS})
            if name == "flip" and equals:
                raise UserError(f"--augment {part.strip()}: flip takes no value, write flip or leave it out")
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
    """The views of all images: the same ones in every process, on every machine.

    On another kind of processor a pixel in many thousands may be rounded the other way.
    """

    augmentation: Augmentation
    seed: int

    def view(self, pixels: npt.NDArray[np.uint8], path: str, number: int) -> npt.NDArray[np.uint8]:
        """One view of one image, which depends on the seed, the number and the path only.

        Args:
            pixels: uint8 of shape (height, width, 3); left as they are.
            path: of the image, as it is listed.
            number: of the epoch, or of the view where several are kept.

        Returns:
            uint8 of the same shape; `pixels` itself if there is nothing to change.
        """
        draw = _draw(self.seed, path, number)
        height, width = pixels.shape[:2]
        matrix = _matrix(self.augmentation, draw, height, width)
        if not np.array_equal(matrix, np.eye(3)):
            # Heavy, but NumPy, the next fastest, takes three times as long, and SciPy ten times.
            import cv2

            _one_thread()
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
    """Seven numbers from -1 to 1, float64. All are drawn always: switching one on changes no other."""
    key = f"{seed} {number} {path}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).uniform(-1, 1, 7)


def _matrix(
    augmentation: Augmentation, draw: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.float64]:
    """Where in the image (x, y, 1) of the view comes from, float64 of shape (3, 3).

    The product is that of Keras' `apply_affine_transform`. There x is the column too, but its shift and its
    centre are taken from the height: the same for square images, and a mistake for others.
    """
    turn, shear = math.radians(augmentation.rotation * draw[0]), math.radians(augmentation.shear * draw[3])
    across, down = augmentation.shift * width * draw[1], augmentation.shift * height * draw[2]
    wide, high = 1 + augmentation.zoom * draw[4], 1 + augmentation.zoom * draw[5]
    x, y = (width - 1) / 2, (height - 1) / 2
    steps = (
        [[1, 0, x], [0, 1, y], [0, 0, 1]],
        [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]],
        [[1, 0, across], [0, 1, down], [0, 0, 1]],
        [[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]],
        [[wide, 0, 0], [0, high, 0], [0, 0, 1]],
        [[1, 0, -x], [0, 1, -y], [0, 0, 1]],
    )
    return functools.reduce(np.matmul, [np.array(step, np.float64) for step in steps])


@functools.cache
def _one_thread() -> None:
    """Keep OpenCV from starting threads: there are as many processes as cores."""
    import cv2

    cv2.setNumThreads(0)
