"""Generators: networks and built-in models, their files, and what makes them ready to translate.

Nothing here imports torch; the modules that need it are imported where a network is at work.
"""
