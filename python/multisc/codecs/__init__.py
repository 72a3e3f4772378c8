"""Source codecs: between pictures or text and coefficients or bits."""
