"""The command line, `python -m rio COMMAND`: arguments to calls, nothing more."""
