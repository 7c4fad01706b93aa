"""Network families with exits (torch)."""
