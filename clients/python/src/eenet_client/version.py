"""The version of this package, in a file of its own: building it must import nothing else."""

__version__ = "0.1.0"
