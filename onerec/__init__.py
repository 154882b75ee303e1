"""The front door: command line, simulator, importers, demo and report."""
