"""Inference: the process that runs the models, and the ZeroMQ connection to it."""
