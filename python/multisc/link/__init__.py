"""The ZeroMQ link between the flowgraph process and the inference process."""
