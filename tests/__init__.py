"""The tests, in the rooms of tlray; `jobs` and `cluster_jobs` start a Ray."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The checkout."""
