"""A corpus of the user's own: files read into one file of documents, and what is in them."""
