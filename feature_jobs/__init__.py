"""Spark jobs: ingest, daily samples, the four pathways, co-interaction, RSFT selection and token shards."""
