"""Load datasets from folders, tables, archives and the Hugging Face Hub."""
