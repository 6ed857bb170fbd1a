"""What measures speed, memory and exactness; ``python -m benchmarks`` runs it. Never part of the tests."""
