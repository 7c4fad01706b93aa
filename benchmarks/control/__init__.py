"""Benchmarks of budget control."""
