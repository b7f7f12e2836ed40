"""Images: found, indexed, read, decoded and augmented."""
