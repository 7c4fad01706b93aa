"""Multi-exit networks and how they run."""
