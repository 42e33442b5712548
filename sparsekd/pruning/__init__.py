"""Structured SVD pruning of the feed-forward layers: statistics, selection, compensation, budget, and the walk."""
