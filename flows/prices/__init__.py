"""Price lists of this checkout, and the width that they give for a target."""
