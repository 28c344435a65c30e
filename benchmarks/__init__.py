"""How long things take: named cases, several interleaved runs, a named baseline in the same run. `make bench`."""
