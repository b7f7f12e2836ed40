"""For authors of plugins: the contract, its tests, and new packages."""
