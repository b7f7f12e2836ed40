"""Assigns an image to a split by its path."""

from __future__ import annotations

import hashlib


def assign_split(path: str, fraction: float, seed: int) -> str:
    """Choose 'train' with probability `fraction`, else 'test', from the path and the seed alone.

    A path always gets the same split. A larger fraction only moves paths from test to train.
    """
    # 48 bits are exact in a float, so a fraction of 1 puts all paths into train.
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=6).digest()
    return "train" if int.from_bytes(digest, "big") / 2**48 < fraction else "test"
