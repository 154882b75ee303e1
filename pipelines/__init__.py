"""Beam pipelines: embed items, fuse, train the codebook, tokenise items."""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    """Beam warns about Google's client libraries when it is imported; nothing here needs them."""
    return "apitools not found" not in str(record.msg)


logging.getLogger().addFilter(_is_wanted)
