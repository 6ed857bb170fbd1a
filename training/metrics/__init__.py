"""Metrics shared by validation and evaluation, from images to intervals.

`image_metrics` compares single images. `pair_statistics` accumulates sufficient statistics and computes the metrics.
`validation_scores` and `bootstrap` accumulate them over images, `distribution` compares sets of `inception` features,
and `her2` predicts HER2 levels.
"""
