"""Metrics shared by validation and evaluation, from images to intervals.

`image_metrics` compares single images. `pair_statistics` adds up what all metrics follow from, and computes them.
`bootstrap` gives intervals over images, `distribution` compares sets of `inception` features, and `her2` predicts HER2
levels.
"""
