"""Every figure in README and docs has its command here."""
