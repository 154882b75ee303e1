"""Ingest: a landing folder's files become rows of ``events``, ``items`` and ``users``, or of ``quarantine``.

``landing`` finds the files, ``values`` and ``sources`` read them, ``rules`` judge the rows, ``job`` publishes.
"""
