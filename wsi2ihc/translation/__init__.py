"""The pipeline: read → translate → blend → write, and its seam report."""
