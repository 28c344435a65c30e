"""Benchmarks of the model in training."""
