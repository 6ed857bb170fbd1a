"""Batches of slides: manifest, worker processes, engines that run them, and results."""
