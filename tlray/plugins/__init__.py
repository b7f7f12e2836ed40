"""Tools for plugin authors: the contract, tests that check it, and a generator of new packages."""
