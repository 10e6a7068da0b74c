"""What a page of HTML is made of, as the standard library's parser reads it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "line", "path", "rect", "circle", "polyline", "br", "img"}


class Outline(HTMLParser):
    """Every element with its attributes, parent and text; wrong nesting and repeated ids are collected as faults."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict[str, object]] = []
        self.faults: list[str] = []
        self.open: list[dict[str, object]] = []
        self.ids: set[str] = set()
        self.feed(html)
        self.close()
        self.faults += [f"<{one['tag']}> is never closed" for one in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "parent": self.open[-1] if self.open else None, "text": ""}
        self.elements.append(element)
        identity = dict(attrs).get("id")
        if identity in self.ids:
            self.faults.append(f"id {identity} twice")
        if identity:
            self.ids.add(identity)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1]["tag"] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1]['tag'] if self.open else 'nothing'}")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] = f"{element['text']}{data}"

    def named(self, *tags: str) -> list[dict[str, object]]:
        """All elements of these tags, in order."""
        return [one for one in self.elements if one["tag"] in tags]


def attribute(element: dict[str, object], name: str) -> str | None:
    attributes = element["attrs"]
    assert isinstance(attributes, dict)
    value = attributes.get(name)
    return value if value is None else str(value)


def inside(element: dict[str, object], tag: str) -> bool:
    parent = element["parent"]
    return isinstance(parent, dict) and (parent["tag"] == tag or inside(parent, tag))
