"""Simulate the engine on any device."""
