"""Benchmarks of reading and augmenting images: speed and memory."""
