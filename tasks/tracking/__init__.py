"""What tasks/track.py is made of: read the stages' files, keep them until they are logged, register the model."""
