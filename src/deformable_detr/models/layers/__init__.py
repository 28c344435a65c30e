"""Blocks: tensors in, tensors out. Nothing here sees a config."""
