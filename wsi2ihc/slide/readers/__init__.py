"""Readers of slide formats."""
