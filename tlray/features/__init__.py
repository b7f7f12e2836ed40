"""Images through a network, kept as Parquet."""
