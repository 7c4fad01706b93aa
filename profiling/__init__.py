"""Measure what exits cost and what they buy."""
