"""HTTP in, predictions out."""

# The only place of the version: pyproject.toml, `eenet --version` and the app read it here.
__version__ = "0.1.0"
