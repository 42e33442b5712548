"""What runs in which order, and the `sparsekd` command."""

from tasks.quick import quicken

quicken()
