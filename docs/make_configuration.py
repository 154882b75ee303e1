"""Writes ``docs/configuration.md`` from the settings in ``schemas/config_sections.py``: ``python -m docs.make_configuration``."""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.config import Config

HEAD = """# Configuration

Made from `schemas/config_sections.py` by `python -m docs.make_configuration`. A lake keeps its configuration beside its
tables, in `onerec.yaml`; `onerec lake create --config FILE` starts from a file that names only what differs from these
defaults. Every step takes `--set section.name=value` for one run. What ran is recorded in `pipeline_runs` by its hash.
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(_section(name, value) for name, value in Config() if isinstance(value, BaseModel))


def _section(path: str, section: BaseModel) -> str:
    lines = [f"\n## {path}\n", f"{(type(section).__doc__ or '').strip()}\n", "| setting | default | meaning |", "|---|---|---|"]
    nested = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            nested.append(_section(f"{path}.{name}", value))
            continue
        default = json.dumps(section.model_dump(mode="json")[name], ensure_ascii=False)
        lines.append(f"| {name} | `{default}` | {' '.join((field.description or '').split())} |")
    return "\n".join(lines) + "\n" + "".join(nested)


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(render())
