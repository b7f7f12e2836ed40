"""Jobs of several commands, described in one file of settings."""
