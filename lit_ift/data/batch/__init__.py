"""Rows to batches: which rows come together, where a run is in them, and how they become tensors."""
