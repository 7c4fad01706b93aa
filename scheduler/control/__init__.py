"""Keep the rolling mean latency under the budget."""
