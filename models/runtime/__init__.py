"""Runtimes that run stages and exit heads: ONNX Runtime, torch, and a replay of recordings."""
