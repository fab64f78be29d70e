"""Simulated parts for tests: nothing in production imports this package."""
