"""`python -m flows` is the `sparsekd` command."""

from flows.cli import main

main()
