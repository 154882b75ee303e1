"""The demo's report: one self-contained page about what went through the factory."""
