"""Importers: public logs become landing zones (``docs/landing-zone.md``).

An importer mends the known quirks of its source by stated rules and counts each in its report, which is also kept in
``landing.json``. What no rule covers is passed on as it is, for ingest to judge.
"""
