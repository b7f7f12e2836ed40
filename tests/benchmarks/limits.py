"""The bare limits: the compiled network alone on arrays in memory, and decoding alone on all cores.

Called with a folder of images; prints one JSON object.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tlray.core.config import NetworkConfig
from tlray.core.runtime import prepare_keras
from tlray.images.decoder import decode
from tlray.models.compiled import compile_network, fastest_precision
from tlray.models.frozen import FrozenPart

SIZE, BATCH, BATCHES = 150, 32, 12


def decode_all(paths: list[Path]) -> None:
    for path in paths:
        decode(path.read_bytes(), SIZE)


def decoding(paths: list[Path]) -> float:
    """Images a second, on all cores together."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(decode_all, [paths[:8]] * cores))  # The processes are there.
        started = time.perf_counter()
        list(pool.map(decode_all, [paths[core::cores] for core in range(cores)]))
        return len(paths) / (time.perf_counter() - started)


def network(precision: str) -> float:
    """Images a second."""
    frozen = FrozenPart.decide(NetworkConfig(image_size=SIZE))
    run = compile_network(frozen.build(), SIZE, precision)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    run(pixels)
    started = time.perf_counter()
    for _ in range(BATCHES):
        run(pixels)
    return BATCH * BATCHES / (time.perf_counter() - started)


def main() -> None:
    paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file())
    rates = {"decoding": decoding(paths)}
    prepare_keras()
    for precision in {"float32", fastest_precision()}:
        rates[precision] = network(precision)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
