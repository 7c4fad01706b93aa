"""Audits, feedback and the agreement floor."""
