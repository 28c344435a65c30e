"""Command line `ddetr`, one file per command; each parses its options, calls one Python function and prints."""
