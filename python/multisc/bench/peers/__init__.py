"""Measuring scripts of other projects' code, each run as a process of its own: the library imports none of them."""
