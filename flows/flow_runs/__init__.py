"""How any flow run begins, is watched over and ends."""
