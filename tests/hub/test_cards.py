"""Cards: what anybody writes is shown, and steers nothing."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest

from hub.cards import MAX_RENDERED_BYTES, render_card
from wegeft.contracts.card import canonical_license, check_card, code_span, escape_markdown, join_card, read_front_matter, split_card
from wegeft.contracts.errors import InvalidInput

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<!-- --><iframe src=//evil></iframe>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](&#x6A;avascript&colon;alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "[x](//evil.example/)",
    "[x](<javascript:alert(1)>)",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    '![" onerror="alert(1)](https://a.example/x.png)',
    '[x](https://a.example/"onmouseover="alert(1))',
    '[x](https://a.example "t" onclick="alert(1)")',
    "[x]: javascript:alert(1)\n\n[x]",
    '[x](https://a.example "\'><script>alert(1)</script>")',
    "```<script>\nalert(1)\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "`<script>alert(1)</script>`",
    "| <script> |\n|---|\n| [x](javascript:alert(1)) |",
    "# <b onmouseover=alert(1)>x</b>",
    "[![x](javascript:1)](javascript:2)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "---\nlicense: <script>alert(1)</script>\n---\n<style>*{display:none}</style>",
]
ALLOWED = set(re.split(" ", "p a em strong s code pre h1 h2 h3 h4 h5 h6 ul ol li blockquote hr br table thead tbody tr th td"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_in(html: str) -> list[tuple[str, dict[str, str | None]]]:
    page = _Page()
    page.feed(html)
    return page.tags


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_card_runs(text: str) -> None:
    """Only plain tags, no handlers, and links that lead to the web or a mailbox."""
    for tag, attributes in tags_in(render_card(text)):
        assert tag in ALLOWED
        assert attributes.keys() <= {"href", "rel", "title", "class", "style", "start"}
        assert re.fullmatch(r"(?:https?://|mailto:).+", attributes.get("href") or "https://none")
        assert (attributes.get("style") or "text-align:left") in {"text-align:left", "text-align:right", "text-align:center"}


def test_what_is_plain_is_shown() -> None:
    html = render_card(
        "---\nlicense: mit\n---\n# Title\n\n| a | b |\n|---|---|\n| 1 | ~~2~~ |\n\n[here](https://a.example) ![pic](https://b.example/p.png)"
    )
    assert "<h1>Title</h1>" in html
    assert "license" not in html
    assert "<td><s>2</s></td>" in html
    assert '<a href="https://a.example" rel="nofollow noopener noreferrer ugc">here</a>' in html
    assert '<a href="https://b.example/p.png" rel="nofollow noopener noreferrer ugc">pic</a>' in html
    assert "<img" not in html


def test_a_long_card_is_shown_as_it_is() -> None:
    html = render_card("[" * (MAX_RENDERED_BYTES + 1) + "<script>")
    assert html.startswith("<pre>[[[")
    assert "<script>" not in html


@pytest.mark.parametrize("text", ["[" * 9_000, "![" * 5_000, "[x][" * 2_500, "> " * 30_000, "`" * 60_000, "a|b\n-|-\n" * 900])
def test_hostile_nesting_ends_soon(text: str) -> None:
    """Far within what a request may take, on a busy machine too."""
    started = time.process_time()
    render_card(text)
    assert time.process_time() - started < 30


def test_a_card_is_split_and_joined() -> None:
    assert split_card("# x") == ("", "# x")
    assert split_card("---\nlicense: mit\n---\n# x") == ("license: mit", "# x")
    assert split_card("---\n---\n# x") == ("", "# x")
    data = {"license": "mit", "tags": ["a: b", "no", "1e3", "a\x7f😀", "yes"], "model-index": [{"name": "x", "value": 1.5}]}
    assert read_front_matter(join_card(data, "# x")) == data
    assert join_card({}, "# x") == "# x"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("---\nlicense: gratis\n---\n", "license"),
        ("---\nlicense: 3\n---\n", "license"),
        ("---\ntags: {a: b}\n---\n", "tags"),
        (f"---\ntags: [{', '.join(['a'] * 201)}]\n---\n", "tags"),
        ("---\n- a\n---\n", "README.md"),
        ("---\na: *b\n---\n", ""),
        ("---\na: 1\na: 2\n---\n", ""),
        (f"---\na: {'x' * (65 << 10)}\n---\n", "README.md"),
        ("x" * ((256 << 10) + 1), "README.md"),
        ("a\0b", "README.md"),
    ],
)
def test_a_wrong_card_is_refused(text: str, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_card(text)
    assert path in {problem.path for problem in caught.value.problems}


def test_licences_are_spelt_as_spdx_does() -> None:
    assert canonical_license("apache-2.0") == "Apache-2.0"
    assert canonical_license("mit or apache-2.0") == "MIT OR Apache-2.0"
    assert canonical_license("LLAMA3.1") == "llama3.1"
    assert canonical_license("gratis") is None


@pytest.mark.parametrize("text", ["a|b", "`x`", "``", "*x*", "<b>", "[x](javascript:1)", "a\nb", "\x1b[1m", "# x", "- x", "&lt;", "\\"])
def test_foreign_text_is_shown_as_it_is(text: str) -> None:
    """Whatever it holds, it stays in its cell and says itself."""
    shown = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    for quoted in (escape_markdown(text), code_span(text)):
        html = render_card(f"| a | b |\n|---|---|\n| {quoted} | end |")
        cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
        assert len(cells) == 2, html
        page = _Page()
        text_seen: list[str] = []
        page.handle_data = text_seen.append  # type: ignore[method-assign]
        page.feed(cells[0])
        assert "".join(text_seen).strip() == shown
        assert {tag for tag, _ in page.tags} <= {"code"}
