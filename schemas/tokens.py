"""What a semantic token may be, wherever one is made, kept or read."""

MOST_TOKENS = 2**16
"""Tokens that a layer can have: a token is an unsigned integer of 16 bits."""
