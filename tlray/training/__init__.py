"""Heads and fine-tuning, on any number of workers."""
