"""The serving loop over exits; knows no HTTP and no Prometheus."""
