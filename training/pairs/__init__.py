"""Paired dataset from pairs of slides: manifest, split by patient, registration, patch extraction, verification."""
