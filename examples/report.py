"""The demo's page: one self-contained HTML file with the photos inline, readable on light and dark screens."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d1c1a; --soft: #6c6961; --line: #e4e0d8;
  --float: #8a8578; --int8: #0f7b6c; --bad: #b4442f; }
@media (prefers-color-scheme: dark) { :root { --paper: #161614; --card: #1f1f1c; --ink: #ecebe6; --soft: #9d9a91; --line: #34332f;
  --float: #8f8b80; --int8: #3fbfa9; --bad: #e5765f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.1rem; }
p { margin: .5rem 0 0; max-width: 46rem; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1.5rem; }
.fact { flex: 1 1 13rem; }
table { margin-top: 1rem; border-collapse: collapse; font-size: .9rem; }
th { text-align: left; font-weight: 500; color: var(--soft); padding: .15rem 1rem .15rem 0; vertical-align: top; white-space: nowrap; }
a { color: var(--int8); }
.fact, .photo { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.fact { padding: .85rem 1rem; }
.fact b { display: block; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: .85rem; }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.photo { display: grid; grid-template-columns: 8rem 1fr; overflow: hidden; }
.photo img { width: 100%; height: 100%; min-height: 9rem; object-fit: cover; display: block; }
.answers { padding: .6rem .9rem .8rem; min-width: 0; display: grid; grid-template-columns: 1fr 1fr; gap: .9rem; align-content: center; }
.who { font-size: .75rem; color: var(--soft); letter-spacing: .02em; }
.row { display: grid; grid-template-columns: minmax(0, 1fr) 2.4rem 2.4rem; gap: .5rem; align-items: center; font-size: .84rem;
  line-height: 1.35; }
.row .name { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.row .share { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
.bar { height: .4rem; border-radius: .2rem; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: .2rem; }
.float i { background: var(--float); } .int8 i { background: var(--int8); } .differs .int8 .who + .row .name { color: var(--bad); }
@media (max-width: 34rem) { .photo { grid-template-columns: 1fr; } .photo img { max-height: 14rem; }
  .answers { grid-template-columns: 1fr; } th { white-space: normal; } }
"""


@dataclass(frozen=True)
class Figures:
    """`verdict`: (figure, what it says), the ones to read first; `facts`: (name, text); `graph`: the page of the graph beside this one."""

    verdict: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    graph: str


@dataclass(frozen=True)
class Answer:
    """One class and its share, 0..1."""

    name: str
    share: float


@dataclass(frozen=True)
class Judged:
    """A photo with the best answers of both models."""

    image: Image.Image
    float_: Sequence[Answer]
    int8: Sequence[Answer]

    @property
    def same(self) -> bool:
        return self.float_[0].name == self.int8[0].name


def render(title: str, lead: str, figures: Figures, photos: Sequence[Judged], note: str) -> str:
    """The whole page."""
    cards = "".join(f'<div class="fact"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in figures.verdict)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in figures.facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<div class="facts">{cards}</div><p>{escape(lead)} '
        f'<a href="{escape(figures.graph)}">The graph after every pass</a>, with the error of each value.</p><table>{rows}</table>'
        f'<h2>The five best answers of both, photo by photo</h2><div class="photos">{"".join(map(_photo, photos))}</div>'
        f"<p>{escape(note)}</p></body></html>\n"
    )


def _photo(judged: Judged) -> str:
    kind = "photo" if judged.same else "photo differs"
    return (
        f'<div class="{kind}"><img alt="photo: {escape(judged.float_[0].name)}" src="{_inline(judged.image)}">'
        f'<div class="answers">{_answers("float", judged.float_)}{_answers("int8", judged.int8)}</div></div>'
    )


def _answers(who: str, answers: Sequence[Answer]) -> str:
    rows = "".join(
        f'<div class="row"><span class="name" title="{escape(a.name)}">{escape(a.name)}</span>'
        f'<span class="bar"><i style="width:{a.share:.1%}"></i></span><span class="share">{a.share:.0%}</span></div>'
        for a in answers
    )
    return f'<div class="{who}"><div class="who">{who}</div>{rows}</div>'


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
