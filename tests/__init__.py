"""The tests: ``unit`` by package, ``gnuradio``, ``integration``, and what they share in ``support``."""
