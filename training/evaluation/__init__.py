"""How good virtual stains are: of models on test patches, of any images, and of whole slides."""
