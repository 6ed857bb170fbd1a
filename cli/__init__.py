"""The ``wsi2ihc`` command: each command parses its options, builds one options object, makes one library call."""
