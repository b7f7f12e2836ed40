"""Networks: backbones, heads and weights, where a network is cut, and the folder of a trained model."""
