"""``compile=True``: a whole solve as one call of machine code."""
