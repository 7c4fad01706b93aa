"""Benchmarks of drift, audits and refitting."""
