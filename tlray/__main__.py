"""`python -m tlray` is `tlray`."""

from tlray.cli import main

main()
