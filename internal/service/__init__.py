"""Between the wire and the rules: codecs, one for each dialect, and how errors look."""
