"""Benchmarks of speed, memory and exactness, run by ``python -m benchmarks``; not part of the tests."""
