"""Backends that run stages and heads."""
