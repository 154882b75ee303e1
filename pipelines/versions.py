"""Which version a step works with when it is not told one.

The live token set's, so that new items get the tokens of the set that is being served; with ``refresh``, or before the first
token set, the newest one.
"""

from schemas.errors import BadInput
from schemas.registry import Registry


def fusion_version(registry: Registry, asked: str | None, *, refresh: bool) -> str:
    """The fusion version to fuse with. Raises BadInput where there is none, with what to run."""
    return _chosen(registry, "fusion", asked, refresh)


def codebook_version(registry: Registry, asked: str | None, *, refresh: bool) -> str:
    """The codebook version to tokenise with, likewise."""
    return _chosen(registry, "codebook", asked, refresh)


def _chosen(registry: Registry, kind: str, asked: str | None, refresh: bool) -> str:
    if asked is not None and refresh:
        raise BadInput(f"--refresh means the newest {kind}; give it or --{kind}-version, not both")
    if asked is None and not refresh and registry.latest("token_set"):
        asked = registry.load("token_set").metadata[f"{kind}_version"]
    if asked is None and registry.latest(kind) is None:
        raise BadInput(f"{registry.root / kind}: no {kind} published yet; run `onerec train-{kind}` first")
    return registry.load(kind, asked).version
