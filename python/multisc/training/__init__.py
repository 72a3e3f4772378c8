"""Training of the embedded models on a laptop."""
