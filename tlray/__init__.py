"""tlray: image transfer learning on Ray."""

from importlib.metadata import version

__version__ = version("tlray")
