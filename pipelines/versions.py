"""Which versions a step works with when it is not told one: those in use.

In use are the newest, and that of the live token set, which stays live while a refresh is being built beside it. So one
command serves both DAGs: a refresh reaches its new version, and new items get the tokens of the set that is being served.
"""

from schemas.errors import BadInput
from schemas.registry import Registry

LATEST = "latest"


def fusion_versions(registry: Registry, asked: str | None) -> list[str]:
    """Fusion versions in use, the newest first; or the one asked for (``latest`` names the newest).

    Raises BadInput where there is none, with what to run.
    """
    return _in_use(registry, "fusion", "fusion_version", asked, "run `onerec train-fusion` first")


def codebook_versions(registry: Registry, asked: str | None) -> list[str]:
    """Codebook versions in use, likewise."""
    return _in_use(registry, "codebook", "codebook_version", asked, "run `onerec train-codebook` first")


def _in_use(registry: Registry, kind: str, key: str, asked: str | None, mend: str) -> list[str]:
    newest = registry.latest(kind)
    if newest is None and asked in (None, LATEST):
        raise BadInput(f"{registry.root / kind}: no {kind} published yet; {mend}")
    if asked is not None:
        return [registry.load(kind, newest if asked == LATEST else asked).version]
    live = registry.latest("token_set")
    serving = registry.load("token_set", live).metadata[key] if live else newest
    return [registry.load(kind, version).version for version in dict.fromkeys([newest, serving]) if version]
