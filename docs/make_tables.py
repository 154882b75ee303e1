"""Writes ``docs/tables.md`` from the declarations in ``schemas/tables.py``: ``python -m docs.make_tables``."""

from pathlib import Path

from schemas.tables import TABLES, Table, column_doc


def render() -> str:
    """The whole page."""
    head = (
        "# Tables\n\nMade from `schemas/tables.py` by `python -m docs.make_tables`; both engines check what stands there when\n"
        "they write; the steps that write files themselves keep to the same rules.\n"
    )
    return head + "".join(_section(table) for table in TABLES.values())


def _section(table: Table) -> str:
    partition = ", ".join(f"`{name}`" for name in table.partition_by) or "none"
    key = ", ".join(f"`{name}`" for name in table.key) or "none"
    lines = [f"\n## {table.name}\n", f"Grain: {table.grain}. Partition: {partition}. Key: {key}.\n"]
    lines += ["| column | type | required | meaning |", "|---|---|---|---|"]
    for column in table.schema:
        kind = str(column.type)
        if kind.startswith(("list<element: struct", "list<item: struct")):
            kind = "list of structs"
        doc = column_doc(column).replace("|", "\\|")
        lines.append(f"| {column.name} | {kind} | {'' if column.nullable else 'yes'} | {doc} |")
    lines += [f"\nCHECK `{name}`: `{check}`" for name, check in table.checks.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(render())
