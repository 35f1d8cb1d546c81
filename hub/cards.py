"""Cards shown: Markdown from anybody as HTML that cannot steer the page it is put into."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from wegeft.contracts.card import split_card

MAX_RENDERED_BYTES = 64 << 10
"""Longer cards are shown as their plain text: what is hostile in Markdown costs time."""

_SAFE_LINK = re.compile(r"(?:https?://|mailto:)[^\s\"'<>\\]+\Z", re.IGNORECASE)


@lru_cache(maxsize=256)
def render_card(markdown: str) -> str:
    """Return a card's text, without its front matter, as HTML that is safe to put into a page.

    Markup in the text is shown, not obeyed; links lead to http, https and mail alone and tell nobody where they were followed; images are
    links, so that a reader's browser asks nobody on their own. CommonMark with tables and strikethrough.
    """
    _, body = split_card(markdown)
    if len(body.encode(errors="replace")) > MAX_RENDERED_BYTES:
        return f"<pre>{escape(body)}</pre>\n"
    return str(_RENDERER.render(body))


def _make_renderer() -> Any:
    renderer = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "maxNesting": 20})
    renderer.enable(["table", "strikethrough"])
    renderer.validateLink = _is_safe_link  # type: ignore[method-assign]  # how markdown-it is told
    renderer.add_render_rule("link_open", _open_link)
    renderer.add_render_rule("image", _link_image)
    return renderer


def _is_safe_link(url: str) -> bool:
    return bool(_SAFE_LINK.match(url))


def _open_link(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    tokens[index].attrSet("rel", "nofollow noopener noreferrer ugc")
    return renderer.renderToken(tokens, index, options, env)


def _link_image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    token = tokens[index]
    shown = renderer.renderInlineAsText(token.children, options, env) if token.children else ""
    address = escape(str(token.attrGet("src") or ""))
    return f'<a href="{address}" rel="nofollow noopener noreferrer ugc">{escape(shown) or "image"}</a>'


_RENDERER = _make_renderer()
