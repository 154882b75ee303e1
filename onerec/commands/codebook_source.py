"""Where ``onerec codebook`` looks: a lake, or a registry alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.config import Config, parse_config
from schemas.errors import BadInput
from schemas.lake import Lake, open_lake
from schemas.registry import Artefact, Registry
from tokenization.codebook import KIND
from tokenization.inspection_tables import TokenisedItems, read_tokens


@dataclass(frozen=True)
class Source:
    """A registry and, unless it stands alone, its lake."""

    registry: Registry
    lake: Lake | None
    config: Config

    def artefact(self, version: str | None) -> Artefact:
        """A codebook version (None: the latest). Raises BadInput with what there is."""
        return self.registry.load(KIND, version)

    def need_lake(self, command: str) -> Lake:
        """The lake. Raises BadInput where there is only a registry."""
        if self.lake is None:
            raise BadInput(f"codebook {command}: a registry holds no items; give --lake instead of --registry")
        return self.lake

    def tokens(self, version: str | None, command: str) -> TokenisedItems:
        """The item tokens of a version. Raises BadInput where it tokenised nothing yet."""
        lake = self.need_lake(command)
        chosen = self.artefact(version).version
        tokens = read_tokens(lake, chosen)
        if not len(tokens):
            raise BadInput(f"{lake.root}: no item tokens of codebook {chosen}; run `onerec tokenize` first")
        return tokens


def open_source(lake: str | None, registry: str | None, overrides: list[str] | None = None) -> Source:
    """Open ``--registry`` if given, else ``--lake``. Raises BadInput for neither, or one that is not there."""
    if registry is not None:
        root = Path(registry)
        if not (root / KIND).is_dir():
            raise BadInput(
                f"--registry {registry}: no registry with codebooks here (no folder {KIND}/); see `onerec train-codebook`"
            )
        return Source(Registry(root), None, parse_config("", "the default configuration", overrides))
    if lake is None:
        raise BadInput("codebook: no place to look; give --lake (or ONEREC_LAKE) or --registry")
    opened = open_lake(lake, overrides)
    return Source(Registry.of(opened), opened, opened.config)


def metrics_at_training(artefact: Artefact) -> dict[str, Any] | None:
    """The metrics that the codebook's metadata carries, or None. Raises BadInput for some of another shape."""
    metrics = artefact.metadata.get("metrics")
    if metrics is None:
        return None
    if (
        not isinstance(metrics, dict)
        or not isinstance(metrics.get("layers"), list)
        or not isinstance(metrics.get("prefixes"), list)
    ):
        raise BadInput(f"{artefact.folder / 'codebook.json'}: its metrics are not those of codebook_metrics; train it again")
    return metrics
