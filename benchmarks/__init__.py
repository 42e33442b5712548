"""Peers and rooflines, each a command that prints a table and writes JSON."""
