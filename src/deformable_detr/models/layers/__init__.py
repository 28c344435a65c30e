"""Layers of the networks: modules and functions from tensors to tensors, built from plain numbers, not settings."""
