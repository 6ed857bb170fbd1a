"""Evaluation of virtual stains: models on test patches, folders of images, and whole slides.

`patches`, `image_folders` and `slides` each make an `Evaluation` (`results`): they fit a threshold for stained pixels,
score all `methods` on the same images (`scores`), and choose examples. `report` turns an `Evaluation` into a `Report`.
"""
