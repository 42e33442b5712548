"""Where a model comes from, link by link from the registry to the bytes, and whether every link still holds."""
