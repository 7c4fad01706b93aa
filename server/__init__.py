"""HTTP in, predictions out."""
