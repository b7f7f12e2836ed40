"""Tar and Parquet files full of images."""
