"""Fit schedulers to recorded predictions."""
