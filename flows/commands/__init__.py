"""What each command does, what it shows while it works and what it ends with."""
