"""From two slides to a transform between them, and from a transform to registered pixels."""
