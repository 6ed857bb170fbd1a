"""Paired datasets, losses, the training loop and evaluation (import name ``wsi2ihc.training``)."""
