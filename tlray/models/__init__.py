"""Backbones, heads and their weights, cutting a network in two, and the folder of a trained model."""
