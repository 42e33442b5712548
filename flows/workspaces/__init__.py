"""Isolated runs and what a checkout keeps of them: worktrees, locks, history, results."""
