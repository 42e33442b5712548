"""`python -m flows` is the `sparsekd` command."""

from flows.cli.app import main

main()
