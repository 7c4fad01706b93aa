"""Compare policies on recorded predictions."""
