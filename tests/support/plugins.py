"""A package with a plugin of each kind, for tests that install it and break it."""

import numpy as np

from tlray.models.weights import digest

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)]

GOOD = f'''
from tlray import Backbone, Head, KnownWeights, WeightsProvider

class Net(Backbone):
    """A small network."""
    name = "net"
    image_size = 24
    cuts = ("early", "late")
    weights = {{"known": KnownWeights(sha256="{digest(ARRAYS)}", url="https://example.invalid/net.h5")}}
    def build(self, image_size): raise NotImplementedError
    def preprocess(self, pixels): return pixels

class Top(Head):
    """A small head."""
    name = "top"
    def build(self, feature_shape, classes): raise NotImplementedError

class Store(WeightsProvider):
    """Weights of another network."""
    name = "store"
    offers = (("other", "known"),)
    def provide(self, backbone, weights, folder): return None
'''
