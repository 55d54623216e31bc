"""The command line and its parameters."""
