"""A page of thumbnails, captions and links to the figures in a folder: one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from paper_figs.catalogue import FIGURES, title_of
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
.source { color: #595959; }
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
<h2>$title</h2>
<a href="$name.png"><img alt="$title" width="$width" height="$height" src="data:image/png;base64,$thumbnail"></a>
<figcaption>$caption <span class="source">Source: $source</span><br>
<code>$name</code>: <a href="$name.pdf">PDF</a> &middot; <a href="$name.png">PNG</a> &middot;
<a href="$name.csv">CSV</a>
</figcaption>
</figure>""")


def write_contact_sheet(folder: Path) -> Path:
    """Write index.html for every figure of the catalogue that the folder holds, whenever drawn, and give its path."""
    path = folder / "index.html"
    names = [name for name in FIGURES if all((folder / f"{name}.{kind}").is_file() for kind in ("png", "pdf", "csv"))]
    page = PAGE.substitute(count=len(names), figures="\n".join(card(folder, name) for name in names))
    write_atomically(path, lambda part: Path(part).write_text(page, encoding="utf-8"))
    return path


def card(folder: Path, name: str) -> str:
    """One figure of the page; its caption is the one in the PNG."""
    with Image.open(folder / f"{name}.png") as image:
        caption, _, source = str(image.info.get("Description", "")).rpartition("Source: ")
        small = image.convert("RGB")
    small.thumbnail((WIDTH, 4 * WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return CARD.substitute(
        name=escape(name),
        title=escape(title_of(name)),
        caption=escape(caption.strip()),
        source=escape(source),
        thumbnail=base64.b64encode(buffer.getvalue()).decode(),
        width=small.width,
        height=small.height,
    )
