"""The command line: `python -m rio COMMAND`."""
