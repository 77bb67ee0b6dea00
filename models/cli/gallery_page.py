"""The web page of a gallery: one HTML file, its style inside, no script."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

REPOSITORY = "https://github.com/spatialweave/spatialweave"


@dataclass(frozen=True)
class Entry:
    """One run of the demo: its settings and command, and its files relative to the page."""

    prompt: str
    seed: int
    candidates: int
    command: str
    image: str
    sheet: str
    orbit: str


def write_command(words: Sequence[str]) -> str:
    """`spatialweave ...` as one types it in a shell."""
    return shlex.join(["spatialweave", *words])


def build_page(entries: Sequence[Entry], built_by: str) -> str:
    """The page's HTML. `built_by` is the command that made it."""
    cards = "\n".join(_card(entry) for entry in entries)
    return _PAGE.format(
        style=_STYLE, cards=cards, repository=html.escape(REPOSITORY), built_by=html.escape(built_by)
    )


def _card(entry: Entry) -> str:
    several = f", the best of {entry.candidates} candidates by the world's judges"
    chosen = several if entry.candidates > 1 else ""
    facts = {name: html.escape(str(value), quote=True) for name, value in vars(entry).items()}
    return _CARD.format(chosen=chosen, **facts)


_CARD = """<article>
<h2>{prompt}</h2>
<div class="pair">
<figure><img src="{image}" alt="{prompt}" width="256" height="256"><figcaption>the image</figcaption></figure>
<figure><img src="{orbit}" alt="The scene, seen from a camera that circles it" width="256" height="256">
<figcaption>its depth as points, circled</figcaption></figure>
</div>
<a href="{sheet}"><img class="sheet" src="{sheet}" loading="lazy"
alt="Image, depth, normals and views of: {prompt}"></a>
<p>Seed {seed}{chosen}. <code>{command}</code></p>
</article>"""

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 72rem; margin: 0 auto; padding: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem; }
article { border: 1px solid #8884; border-radius: .75rem; padding: 1rem; min-width: 0; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; opacity: .75; }
img { width: 100%; height: auto; border-radius: .4rem; display: block; }
.sheet { margin-top: .75rem; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8884; border-radius: .5rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="Images with their depth, sampled in one run: ComfyUI and plain Python.">
<title>SpatialWeave</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>SpatialWeave</h1>
<p>An image <strong>and</strong> its depth, sampled together in one run: ComfyUI nodes and plain Python.
Everything on this page is the tiny model's, which ships in <a href="{repository}">the repository</a> and
runs on a CPU: no download, no graphics card. It knows balls, boxes, cylinders and cones.</p>
<pre>pip install -e . &amp;&amp; spatialweave demo</pre>
</header>
<main>
{cards}
</main>
<footer>
<p>Built by <code>{built_by}</code>. Same seed, same result.
<a href="{repository}#readme">How to use it</a></p>
</footer>
</body>
</html>
"""
