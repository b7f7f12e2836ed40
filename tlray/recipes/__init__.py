"""Several commands as one file of settings."""
