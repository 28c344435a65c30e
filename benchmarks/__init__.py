"""Benchmarks (`make bench`): named cases, several interleaved runs, and a baseline that is measured in the same run."""
