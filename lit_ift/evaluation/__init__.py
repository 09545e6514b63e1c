"""Measure trained models on tasks: scores with standard errors, and paired differences between models."""
