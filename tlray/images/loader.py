"""Loads an image: reads it, and decodes it in a way that cannot harm other images."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.core.config import SECONDS_PER_IMAGE
from tlray.core.storage import Folder
from tlray.images import sandbox
from tlray.images.decoder import decode_timed
from tlray.images.reader import Place, Reader


class ImageLoader:
    """Loads images of one root in a `with` block. Only one thread may use it.

    An image that crashes or stalls the decoder raises BadImage like any other bad image; see
    `tlray.images.sandbox`.
    """

    def __init__(
        self,
        root: Folder,
        image_size: int,
        max_pixels: int,
        seconds: float = SECONDS_PER_IMAGE,
        *,
        in_task: bool = False,
    ) -> None:
        """Prepare to load images.

        Args:
            root: the folder to which the paths of the images are relative.
            image_size: the height and width of the pixels.
            max_pixels: the most pixels (width times height) that an image may have.
            seconds: the most time to decode an image.
            in_task: whether this is a Ray task that Ray runs again if its process ends.
        """
        self.read_seconds = 0.0
        """Seconds spent reading so far."""
        self.decode_seconds = 0.0
        """Seconds spent decoding so far, without the start of processes and without bad images."""
        self._read = Reader(root)
        self._decode = partial(decode_timed, image_size=image_size, max_pixels=max_pixels)
        self._run = sandbox.in_task(seconds) if in_task else sandbox.DecoderProcess(seconds)

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(self, *error: Any) -> None:
        self._run.__exit__(*error)

    def __call__(self, place: Place) -> npt.NDArray[np.uint8]:
        """The pixels of one image, uint8 of shape (image_size, image_size, 3).

        Raises:
            BadImage: there is no such image, or it cannot be read or decoded.
        """
        started = time.perf_counter()
        try:
            data = self._read(*place)
        finally:
            self.read_seconds += time.perf_counter() - started
        pixels, seconds = self._run(self._decode, data)
        self.decode_seconds += seconds
        return pixels
