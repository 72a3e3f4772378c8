"""Systems: two functions around a list of streams."""
