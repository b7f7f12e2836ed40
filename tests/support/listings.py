"""What a listing of images yields, and the message with which it is refused."""

import pytest

from tlray.core.errors import UserError
from tlray.images.listing import Images


def rows(uri: str) -> list[tuple[str, str | None, str | None]]:
    return [(row.path, row.split, row.label) for row in Images.open(uri)]


def paths(uri: str) -> list[str]:
    return [row.path for row in Images.open(uri)]


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        list(Images.open(uri))
    message = str(caught.value)
    assert len(message.splitlines()) <= 2, message
    return message
