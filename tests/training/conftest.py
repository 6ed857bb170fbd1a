"""Put this folder on the import path: its subfolders share `make_images` and `make_pairs`."""
