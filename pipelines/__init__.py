"""Beam pipelines: embed items, fuse, train the codebook, tokenise items."""
