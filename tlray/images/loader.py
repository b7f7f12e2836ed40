"""An image from its place to its pixels: read, and decoded where it can harm no other image."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.core.storage import Folder
from tlray.images import sandbox
from tlray.images.bad_image import BadImage
from tlray.images.decoder import decode_timed
from tlray.images.reader import Place, Reader


class ImageLoader:
    """Reads and decodes images of one root, one after the other, in a `with` block; not for several threads.

    An image that crashes the decoder, or keeps it busy for ever, is a bad image: see `tlray.images.sandbox`.
    """

    def __init__(self, root: Folder, image_size: int, max_pixels: int, *, in_task: bool = False) -> None:
        """Read nothing yet.

        Args:
            root: of the images.
            image_size: height and width of the pixels.
            max_pixels: an image of more is bad.
            in_task: whether this is a Ray task that Ray tries again if its process ends.
        """
        self.read_seconds = 0.0
        """Seconds spent reading so far."""
        self.decode_seconds = 0.0
        """Seconds spent decoding so far, without the start of a process and without images that ended one."""
        self._read = Reader(root)
        self._decode = partial(decode_timed, image_size=image_size, max_pixels=max_pixels)
        self._sandbox = sandbox.in_task() if in_task else sandbox.DecoderProcess()

    def __enter__(self) -> ImageLoader:
        self._run = self._sandbox.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sandbox.__exit__(*error)

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
        outcome, seconds = self._run(self._decode, data)
        self.decode_seconds += seconds
        if isinstance(outcome, BadImage):
            raise outcome
        return outcome
