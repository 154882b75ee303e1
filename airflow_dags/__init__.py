"""Airflow DAGs: each task calls a command that a person could type. Imports nothing of this project."""
