"""Predictions, scores and the report."""
