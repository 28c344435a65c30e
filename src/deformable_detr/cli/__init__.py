"""The command `ddetr`: one file per command; each parses, calls one Python function and prints."""
