"""A sweep's points, how they are run, and their results side by side."""
