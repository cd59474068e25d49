"""A profile as a flame graph: one SVG file that needs no script, no font and no network to be read.

At the bottom all, above it the job types, above each the functions of its handler. The wider, the more time; what is
hovered over says its name and its share. Names are data here: whatever they hold, they are only text (FAILURES C22).
"""

from __future__ import annotations

from html import escape
from itertools import cycle
from typing import NamedTuple

from ..wording import quantity
from .profiling import THE_WORKER, Function, Profile, by_job_type, percent
from .stacks import Owner, clean

_WIDTH = 1200
_MARGIN = 10
_ROW = 18
_TOP = 64
_BOTTOM = 34
_CHAR = 6.7  # width of a character of the font below, px
#: Narrower boxes cannot be seen.
_NARROWEST = 0.25
_CHARS_MAX = 300
_LOOKS: dict[Owner, tuple[str, str]] = {
    "yours": ("your code", "#f2a65a"),
    "library": ("libraries", "#9ec5e8"),
    "python": ("Python", "#b9d8a8"),
    "packhorse": ("packhorse", "#d0c4dd"),
}
_GREY = "#e8e0d0"
#: Of job types, in turn, the heaviest first; apart from the colours of functions, and dark text can be read on each.
_TYPE_COLOURS = ("#e58a8a", "#6fc3b8", "#c9a0dc", "#d9c65c", "#8fa8e6", "#e39ac4")


class Node:
    """A box: what it is, and those above it."""

    __slots__ = ("children", "colour", "label", "tip", "weight_us")

    def __init__(self, label: str, tip: str, colour: str) -> None:
        self.label = label
        self.tip = tip
        self.colour = colour
        self.weight_us = 0
        self.children: dict[object, Node] = {}


class Box(NamedTuple):
    """Where a node is drawn, px; level 0 is the bottom."""

    node: Node
    level: int
    left: float
    width: float


def flame_graph(profile: Profile, title: str) -> str:
    """Answer the flame graph as an SVG document. Boxes narrower than a quarter of a pixel are left out."""
    root = _tree(profile)
    boxes = _lay_out(root)
    height = _TOP + _ROW * (1 + max(box.level for box in boxes)) + _BOTTOM
    bottom = height - _BOTTOM - _ROW
    what = "processor time" if profile.mode == "cpu" else "time in jobs, waiting included"
    under = (
        f"{what}: {root.weight_us / 1e6:.2f} s in {profile.duration_ms / 1000:.1f} s, "
        f"{quantity(profile.samples, 'sample')} at {profile.rate} a second, "
        f"{quantity(profile.processes, 'process', 'processes')}"
    )
    body = "\n".join(_draw(box, bottom - _ROW * box.level, root.weight_us) for box in boxes)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">
<style>
text {{ font: 11px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #222 }}
.title {{ font-size: 15px }} .under {{ fill: #666 }}
g.box:hover rect {{ stroke: #222; stroke-width: 1 }} g.box text {{ pointer-events: none }}
</style>
<rect width="100%" height="100%" fill="#fffdf8"/>
<text class="title" x="{_MARGIN}" y="24">{_text(title)}</text>
<text class="under" x="{_MARGIN}" y="44">{_text(under)}</text>
{_legend()}
{body}
<text class="under" x="{_MARGIN}" y="{height - 12}">Hover over a box for its name and share. From left to right \
the order is by name, not by time.</text>
</svg>
"""


def _tree(profile: Profile) -> Node:
    root = Node("all", "all", _GREY)
    types = [row.name for row in by_job_type(profile) if not row.name.startswith("(")]
    colours = dict(zip(types, cycle(_TYPE_COLOURS), strict=False))
    for stack in profile.stacks:
        root.weight_us += stack.weight_us
        node = root.children.get(stack.job_type)
        if node is None:
            label = clean(stack.job_type)
            tip = "packhorse itself" if stack.job_type == THE_WORKER else f"job type {label}"
            node = root.children[stack.job_type] = Node(label, tip, colours.get(stack.job_type, _GREY))
        node.weight_us += stack.weight_us
        for place in stack.functions:
            child = node.children.get(place)
            if child is None:
                child = node.children[place] = _of_function(profile.functions[place])
            child.weight_us += stack.weight_us
            node = child
    return root


def _of_function(function: Function) -> Node:
    tip = f"{function.name}  {function.file}:{function.line}" if function.file else function.name
    return Node(clean(function.label), clean(tip), _LOOKS[function.owner][1])


def _lay_out(root: Node) -> list[Box]:
    """Answer where each node goes. Without recursion: stacks may be deep."""
    scale = (_WIDTH - 2 * _MARGIN) / max(1, root.weight_us)
    boxes = [Box(root, 0, _MARGIN, _WIDTH - 2 * _MARGIN)]
    for box in boxes:  # grows while it is gone through
        left = box.left
        for child in sorted(box.node.children.values(), key=lambda child: child.label):
            width = child.weight_us * scale
            if width >= _NARROWEST:
                boxes.append(Box(child, box.level + 1, left, width))
            left += width
    return boxes


def _draw(box: Box, top: int, whole_us: int) -> str:
    node = box.node
    share = f"{node.weight_us / 1e6:.3f} s, {percent(node.weight_us, whole_us)}"
    room = int((box.width - 6) / _CHAR)
    label = node.label if len(node.label) <= room else node.label[: room - 1] + "…" if room >= 3 else ""
    text = f'<text x="{box.left + 3:.1f}" y="{top + 13}">{_text(label)}</text>' if label else ""
    return (
        f'<g class="box"><title>{_text(node.tip)}: {share}</title>'
        f'<rect x="{box.left:.2f}" y="{top}" width="{max(box.width - 0.5, _NARROWEST):.2f}" height="{_ROW - 1}" '
        f'rx="1" fill="{node.colour}"/>{text}</g>'
    )


def _legend() -> str:
    parts = []
    left = _WIDTH - _MARGIN - 110 * len(_LOOKS)
    for at, (name, colour) in enumerate(_LOOKS.values()):
        x = left + 110 * at
        parts.append(f'<rect x="{x}" y="34" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="44">{name}</text>')
    return "".join(parts)


def _text(text: str) -> str:
    """Answer text as XML may hold it."""
    return escape(clean(text)[:_CHARS_MAX])
