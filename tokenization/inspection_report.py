"""A self-contained HTML page about one codebook version: numbers, pictures, example items with thumbnails by prefix."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from tokenization.encoders.base import MediaLimits, Unreadable
from tokenization.encoders.media import decode_picture, read_media

LIMITS = MediaLimits(max_bytes=16 * 2**20, max_pixels=32_000_000, max_seconds=0)
"""A larger picture is left out."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Codebook {{ version }}</title>
<style>
:root { color-scheme: light; --line: #d9dee5; --soft: #5a6472; --bar: #2c6fbb; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1d232b; max-width: 1120px; margin: 32px auto; padding: 0 20px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 10px; }
.soft { color: var(--soft); } code { background: #f1f4f8; padding: 1px 5px; border-radius: 4px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; min-width: 120px; }
.tile b { display: block; font-size: 22px; } .figures { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.figures img { width: 100%; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 6px 10px; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
.prefix { border-top: 1px solid var(--line); padding: 12px 0; } .prefix h3 { margin: 0 0 8px; font-size: 15px; }
.items { display: flex; flex-wrap: wrap; gap: 12px; } .item { width: 124px; font-size: 12px; overflow-wrap: anywhere; }
.item span { display: block; }
.item img, .blank { width: 124px; height: 92px; object-fit: cover; border-radius: 6px; background: #e8edf3; display: flex;
  align-items: center; justify-content: center; color: var(--soft); }
</style></head><body>
<h1>Codebook {{ version }}</h1>
<div class="soft">{{ metrics["items"]|number }} items &middot; layers of {{ metrics["sizes"]|join(", ") }} tokens
{%- for name, value in facts.items() %} &middot; {{ name }} <code>{{ value }}</code>{% endfor %}</div>
<div class="tiles">
<div class="tile"><b>{{ metrics["distinct_codes"]|number }}</b>distinct codes</div>
<div class="tile"><b>{{ metrics["collision_share"]|percent }}</b>items that share a code</div>
<div class="tile"><b>{{ metrics["largest_bucket"]|number }}</b>items in the fullest code</div>
{% if metrics.get("reconstruction_error") is not none %}
<div class="tile"><b>{{ "%.3f"|format(metrics["reconstruction_error"]) }}</b>error &divide; variance</div>{% endif %}
</div>
<h2>Layers</h2>
<table><tr><th>layer</th><th>tokens</th><th>utilization</th><th>dead</th><th>entropy (nats)</th><th>&divide; ln k</th>
<th>perplexity</th><th>Gini</th><th>median items</th><th>fullest</th></tr>
{% for layer in metrics["layers"] %}<tr><td>{{ loop.index }}</td><td>{{ layer["size"]|number }}</td>
<td>{{ layer["utilization"]|percent }}</td><td>{{ layer["dead_tokens"]|number }}</td>
<td>{{ "%.3f"|format(layer["entropy"]) }}</td>
<td>{{ "%.3f"|format(layer["entropy_ratio"]) }}</td><td>{{ "%.1f"|format(layer["perplexity"]) }}</td>
<td>{{ "%.3f"|format(layer["gini"]) }}</td><td>{{ "%g"|format(layer["size_quantiles"]["0.5"]) }}</td>
<td>{{ "%g"|format(layer["size_quantiles"]["1"]) }}</td></tr>{% endfor %}</table>
<h2>Prefixes</h2>
<table><tr><th>depth</th><th>distinct</th><th>items that share it</th><th>fullest</th>
{% for name in optional %}<th>{{ labels[name] }}</th>{% endfor %}</tr>
{% for row in metrics["prefixes"] %}<tr><td>{{ row["depth"] }}</td><td>{{ row["distinct"]|number }}</td>
<td>{{ row["collision_share"]|percent }}</td><td>{{ row["largest_bucket"]|number }}</td>
{% for name in optional %}<td>{{ "%.3f"|format(row[name]) if row.get(name) is not none else "–" }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Pictures</h2>
<div class="figures">{% for name, source in figures.items() %}<img alt="{{ name }}" src="{{ source }}">{% endfor %}</div>
{% for group in groups %}<h2>{{ group["title"] }}</h2>
{% for example in group["examples"] %}<div class="prefix"><h3><code>{{ example["prefix"]|join(" ") }}</code>
<span class="soft">{{ example["items"]|number }} items{% if example["mix"] %} &middot; {{ example["mix"] }}{% endif %}</span></h3>
<div class="items">{% for item in example["shown"] %}<div class="item">
{% if item["picture"] %}<img alt="" src="{{ item["picture"] }}">{% else %}<div class="blank">no picture</div>{% endif %}
{{ item["title"] }} <span class="soft">{{ item["item_id"] }}</span></div>{% endfor %}</div></div>{% endfor %}{% endfor %}
</body></html>
"""
_LABELS = {
    "reconstruction_error": "error ÷ variance",
    "nmi": "category information (NMI)",
    "behaviour_hit_rate": "co-watched pairs inside",
}


def report_page(
    version: str,
    metrics: Mapping[str, Any],
    figures: Mapping[str, bytes],
    groups: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
) -> str:
    """The page as HTML. Everything from data is escaped.

    ``figures`` from ``codebook_figures``; ``groups`` hold ``title`` and ``examples``, each with ``prefix``, ``items``,
    ``mix`` (text) and ``shown``: ``{"item_id", "title", "picture" (data URI or None)}``; ``facts`` are shown at the top.
    """
    environment = Environment(autoescape=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    optional = [name for name in _LABELS if any(row.get(name) is not None for row in metrics["prefixes"])]
    page: str = environment.from_string(_PAGE).render(
        version=version,
        metrics=metrics,
        figures={name: data_uri(content, "image/png") for name, content in figures.items()},
        groups=groups,
        facts=facts,
        optional=optional,
        labels=_LABELS,
    )
    return page


def thumbnail(uri: str | None, pixels: int = 160, limits: MediaLimits = LIMITS) -> str | None:
    """A JPEG data URI, at most ``pixels`` wide and high, of the picture at a media address (``encoders.media``).

    None without an address, and where the picture cannot be read or is larger than ``limits`` allow.
    """
    if not uri:
        return None
    try:
        picture = decode_picture(read_media(uri, limits), limits)
    except Unreadable:
        return None
    from PIL import Image

    small = Image.fromarray(picture)
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
