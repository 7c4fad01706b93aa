"""Train networks with exits (torch)."""
