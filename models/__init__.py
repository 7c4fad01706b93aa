"""Multi-exit networks: datasets, training, export and runtimes."""
