"""Inspection of paired datasets: image statistics, duplicate tissue across splits, misaligned pairs."""
