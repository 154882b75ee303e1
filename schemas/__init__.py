"""What crosses a boundary, declared once: tables, constraints, configuration, manifests, errors and the lake's addresses."""
