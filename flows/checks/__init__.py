"""What can be said before anything heavy loads: faults, what is stale, minutes, memory, disk."""
