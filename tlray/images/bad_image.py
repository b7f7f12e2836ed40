"""The error that says why an image cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tlray.core.errors import TlrayError
from tlray.core.text import escaped, without_credentials

MAX_BYTES: int = 1 << 30
"""A larger file is refused without reading it: it is more than `MAX_PIXELS` pixels of 8 bytes each."""


class BadImage(Exception):  # noqa: N818 - The name describes the file.
    """An image that cannot be used. Its message is one printable line of at most 500 characters."""

    def __init__(self, stage: str, error: str, message: str) -> None:
        message = escaped(re.sub(r" at 0x[0-9a-fA-F]+", "", without_credentials(message)))
        self.stage = stage
        """The step that failed: `read` or `decode`."""
        self.error = error
        """The type of the exception, or a name that tlray gives, such as `NotAnImage`."""
        self.message = message if len(message) <= 500 else f"{message[:497]}..."
        super().__init__(stage, error, self.message)

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


@contextmanager
def refusing(stage: str) -> Iterator[None]:
    """Turn every exception into a BadImage: Pillow and file systems raise exceptions of any type."""
    try:
        yield
    except (BadImage, TlrayError):  # A fault of the storage must stop the job.
        raise
    except Exception as error:
        # The system's own text leaves out the path, which the error row has already.
        message = getattr(error, "strerror", None) or str(error) or "no reason given"
        raise BadImage(stage, type(error).__name__, message) from error
