"""Train multi-exit networks with torch."""
