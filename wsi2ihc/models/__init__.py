"""Generators: networks, built-in models and model files, and their inference on a device.

Importing the package does not import torch; modules that need it are imported when a network is used.
"""
