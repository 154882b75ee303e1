"""One configuration for a lake, kept beside its tables as ``onerec.yaml`` and validated at the edge.

Each job reads one section. A command can override single values for a run (``--set samples.user_day_cap=500``); what ran
is recorded in ``pipeline_runs`` by its hash.
"""

import hashlib
import json
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.config_sections import (
    CodebookSection,
    CoInteractionSection,
    EmbedSection,
    EvaluateSection,
    FusionSection,
    GatesSection,
    IndustrialRule,
    IngestSection,
    LakeSection,
    LifelongSection,
    PathwaysSection,
    PositiveDefinition,
    ReinforceSection,
    RetentionSection,
    RewardSection,
    RsftSection,
    SamplesSection,
    Section,
    TrainSection,
)
from schemas.errors import BadInput

__all__ = [
    "CoInteractionSection",
    "CodebookSection",
    "Config",
    "EmbedSection",
    "EvaluateSection",
    "FusionSection",
    "GatesSection",
    "IndustrialRule",
    "IngestSection",
    "LakeSection",
    "LifelongSection",
    "PathwaysSection",
    "PositiveDefinition",
    "ReinforceSection",
    "RetentionSection",
    "RewardSection",
    "RsftSection",
    "SamplesSection",
    "TrainSection",
    "parse_config",
]


class Config(Section):
    """Everything that a run can be told, by job."""

    lake: LakeSection = LakeSection()
    ingest: IngestSection = IngestSection()
    samples: SamplesSection = SamplesSection()
    pathways: PathwaysSection = PathwaysSection()
    lifelong: LifelongSection = LifelongSection()
    co_interaction: CoInteractionSection = CoInteractionSection()
    embed: EmbedSection = EmbedSection()
    fusion: FusionSection = FusionSection()
    codebook: CodebookSection = CodebookSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    reward: RewardSection = RewardSection()
    reinforce: ReinforceSection = ReinforceSection()
    rsft: RsftSection = RsftSection()
    retention: RetentionSection = RetentionSection()

    @property
    def version(self) -> str:
        """First 12 hex digits of the sha256 of the whole configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """The configuration as a person reads and edits it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_config(text: str, where: str, overrides: list[str] | None = None) -> Config:
    """Read a configuration from YAML text and apply ``section.name=value`` overrides.

    Raises BadInput, naming ``where`` and the value, for text that is no YAML, an unknown name or a value out of range.
    """
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not YAML ({error}); mend or restore the file") from error
    if not isinstance(values, dict):
        raise BadInput(f"{where}: holds {type(values).__name__}, not sections of settings")
    config = _validated(values, where)
    if not overrides:
        return config
    for override in overrides:
        _apply_override(values, override)
    return _validated(values, "--set")


def _validated(values: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f" (found {first['input']!r})"
        raise BadInput(f"{where}: {name}: {first['msg']}{found}; see docs/configuration.md") from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise BadInput(f"--set {override!r}: expected section.name=value, like samples.user_day_cap=500")
    *sections, name = path.split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise BadInput(f"--set {override!r}: {section} is a value, not a section")
    try:
        target[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {override!r}: the value is not YAML") from error
