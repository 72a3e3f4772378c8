"""The models behind the systems, loaded from a directory or the hub. Only the inference process imports torch."""
