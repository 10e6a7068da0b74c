"""A page of thumbnails, captions and links to figures in a folder: one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from paper_figs.catalogue import Made
from sim.records import write_atomically

WIDTH = 420
"""pixels of a thumbnail"""
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figures of the speculative decoding lab</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 96em; padding: 0 1em; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); gap: 1.5em; }
figure { margin: 0; padding: 1em; border: 1px solid #ddd; border-radius: 6px; }
figure img { width: 100%; height: auto; background: #fff; }
figcaption { font-size: 13px; margin-top: 0.6em; }
h2 { font-size: 15px; margin: 0 0 0.6em; }
.source { color: #666; }
</style>
</head>
<body>
<h1>Figures of the speculative decoding lab</h1>
<p>$count figures, each with the numbers behind it. Made by <code>specdec figures</code>.</p>
<main>
$figures
</main>
</body>
</html>
""")
CARD = Template("""<figure id="$name">
<h2>$name</h2>
<a href="$name.png"><img alt="$name" width="$width" height="$height" src="data:image/png;base64,$thumbnail"></a>
<figcaption>$caption <span class="source">Source: $source.</span><br>
<a href="$name.pdf">PDF</a> &middot; <a href="$name.png">PNG</a> &middot; <a href="$name.csv">CSV</a></figcaption>
</figure>""")


def write_contact_sheet(figures: Sequence[Made], out_dir: Path) -> Path:
    """Write index.html for figures that lie in the same folder, and give its path."""
    path = out_dir / "index.html"
    page = PAGE.substitute(count=len(figures), figures="\n".join(map(card, figures)))
    write_atomically(path, lambda part: Path(part).write_text(page, encoding="utf-8"))
    return path


def card(figure: Made) -> str:
    """One figure of the page."""
    with Image.open(figure.paths["png"]) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDTH, 4 * WIDTH))
        buffer = io.BytesIO()
        small.save(buffer, "PNG", optimize=True)
    return CARD.substitute(
        name=escape(figure.name),
        caption=escape(figure.caption),
        source=escape(figure.source),
        thumbnail=base64.b64encode(buffer.getvalue()).decode(),
        width=small.width,
        height=small.height,
    )
