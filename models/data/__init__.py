"""Datasets: folders, tables, archives, the hub."""
