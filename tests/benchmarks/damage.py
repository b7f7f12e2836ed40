"""Counts damaged and whole JPEGs that are refused, and measures what the check costs.

    python -m tests.benchmarks.damage DIR

The folder, with its subfolders, needs 1,500 photographs as JPEG files. The table is for docs/reliability.md.
"""

import io
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from tlray.images import jpeg
from tlray.images.bad_image import BadImage
from tlray.images.decoder import decode, open_image

DRAW = random.Random(0)
END = b"\xff\xd9"


def scan(data: bytes) -> tuple[int, int]:
    """Where the image data begins and ends."""
    return data.rindex(b"\xff\xda") + 2, data.rindex(END)


def without_quarter(data: bytes) -> bytes:
    start, end = scan(data)
    at, part = start + 3 * (end - start) // 8, (end - start) // 4
    return data[:at] + data[at + part :]


def overwritten(fill: Callable[[int], bytes]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        start, end = scan(data)
        at = DRAW.randrange(start + 20, max(start + 21, end - 4096))
        stop = min(end, at + 4096)
        return data[:at] + fill(stop - at) + data[stop:]

    return damage


def with_stray_bytes(data: bytes) -> bytes:
    """Up to 300 bytes, zeros or random ones, before the first table or before the end mark."""
    extra = DRAW.choice([bytes, DRAW.randbytes])(DRAW.randint(1, 300)).replace(b"\xff", b"\xfe")
    table = 2
    while data[table + 1] >= 0xE0:  # Metadata, which may contain a thumbnail with tables of its own.
        table += 2 + int.from_bytes(data[table + 2 : table + 4], "big")
    at = DRAW.choice([table, data.rindex(END)])
    return data[:at] + extra + data[at:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut to 30 %, with an end mark": lambda data: data[: int(0.3 * len(data))] + END,
    "cut to 60 %, with an end mark": lambda data: data[: int(0.6 * len(data))] + END,
    "cut to 90 %, with an end mark": lambda data: data[: int(0.9 * len(data))] + END,
    "a quarter cut out of the middle": without_quarter,
    "4 kB of zeros": overwritten(bytes),
    "4 kB of random bytes": overwritten(lambda size: DRAW.randbytes(size).replace(b"\xff", b"\xfe")),
}


def refused(files: list[bytes]) -> int:
    """The number of files that are refused."""
    count = 0
    for data in files:
        try:
            open_image(data, 300)
        except BadImage:
            count += 1
    return count


def by_pillow(data: bytes, image: Image.Image, at_least: int) -> Image.Image:
    """What tlray did before it checked JPEGs."""
    if at_least:
        image.draft(None, (at_least, at_least))
    image.load()
    return image


def milliseconds(files: list[bytes], size: int) -> float:
    """The time to decode one file, the best of three rounds."""
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        for data in files:
            decode(data, size)
        rounds.append(time.perf_counter() - started)
    return 1000 * min(rounds) / len(files)


def main(folder: str) -> None:
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = [path.read_bytes() for path in DRAW.sample(paths, min(1500, len(paths)))]
    print("| JPEGs | refused | by Pillow alone |\n| --- | --- | --- |")
    kinds = {name: [damage(data) for data in files[:100]] for name, damage in DAMAGE.items()}
    kinds |= {
        "whole photographs": files,
        "with stray bytes": [with_stray_bytes(data) for data in files[:300]],
    }
    for name, kind in kinds.items():
        count = refused(kind)
        with patch.object(jpeg, "decode", by_pillow):
            print(f"| {name} | {count} of {len(kind)} | {refused(kind)} of {len(kind)} |")
    same = 0
    for data, strayed in zip(files[:300], kinds["with stray bytes"], strict=True):
        same += np.array_equal(open_image(data, 300), open_image(strayed, 300))
    print(f"\nThe same pixels with stray bytes: {same} of 300\n")
    large = [encoded(data) for data in files[:20]]
    for name, kind in (("photographs", files[:300]), ("photographs of 12 million pixels", large)):
        for size in (150, 224):
            checked = milliseconds(kind, size)
            with patch.object(jpeg, "decode", by_pillow):
                print(
                    f"{name}, {size} px: {checked:.2f} ms, by Pillow alone {milliseconds(kind, size):.2f} ms"
                )


def encoded(data: bytes) -> bytes:
    """The photograph enlarged to 4000 x 3000 pixels."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    main(sys.argv[1])
