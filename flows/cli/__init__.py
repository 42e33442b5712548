"""The command line: options and help texts only."""
