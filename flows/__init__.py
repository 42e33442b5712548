"""What runs in which order, and the `sparsekd` command."""
