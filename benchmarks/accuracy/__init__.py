"""Benchmarks of accuracy: runs that differ in one thing, compared by equal evaluations."""
