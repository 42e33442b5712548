"""params.yaml: read, changed and settled, whether a command line or a form gives the values."""
