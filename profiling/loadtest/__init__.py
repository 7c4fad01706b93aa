"""Send traffic to a running server."""
