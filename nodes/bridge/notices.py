"""How a sentence reaches the user: in the log always, and on the node where there is a page.

Everything that this pack has to say while it works goes through here, and nowhere else is decided
how it looks or where it goes.
"""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Hashable, Iterable
from typing import Any

from ...nested_core.errors import readable

try:
    from comfy_execution.utils import get_executing_context
except ImportError:  # not in every release; then nobody knows which node runs
    get_executing_context = None


def current_node() -> str | None:
    """The node that ComfyUI is executing, as the page calls it."""
    context = get_executing_context() if get_executing_context is not None else None
    return None if context is None else context.node_id


def own_id(node: Any) -> str | None:
    """A node class's own id on the page, where it asked for it; None where it runs without a page."""
    hidden = getattr(node, "hidden", None)
    return None if hidden is None else hidden.unique_id


def current_run() -> tuple[str, str] | None:
    """The prompt and the node that ComfyUI is executing."""
    context = get_executing_context() if get_executing_context is not None else None
    return None if context is None else (context.prompt_id, context.node_id)


def tell(text: str, nodes: Iterable[str | None] = (), level: int = logging.WARNING) -> None:
    """One sentence, in the log and on these nodes."""
    text = readable(text)
    logging.log(level, "Nested Attention: %s", text)
    for node in dict.fromkeys(nodes):
        if node is not None:
            _show(text, node)


def _show(text: str, node: str) -> None:
    """Text on a node of the page: the one way that ComfyUI has had since the oldest release supported."""
    server: Any = getattr(sys.modules.get("server"), "PromptServer", None)
    page = getattr(server, "instance", None)
    if page is None or not hasattr(page, "send_progress_text"):
        return
    try:
        # The page takes it for HTML, in which <anna> would be a tag and be gone.
        page.send_progress_text(html.escape(text, quote=False), node)
    except Exception:  # the sentence stands in the log; a page that went away stops no sampling
        logging.debug("Nested Attention: node %s could not be reached", node, exc_info=True)


class Notices:
    """What is said in the course of one sampling: each kind once, and together on each node.

    Args:
        node: where sentences go that are about no subject in particular.
    """

    def __init__(self, node: str | None = None) -> None:
        self._node = node
        self._said: set[Hashable] = set()
        self._on_node: dict[str, list[str]] = {}

    def has_said(self, *kinds: Hashable) -> bool:
        """Whether a sentence of one of these kinds was said."""
        return any(kind in self._said for kind in kinds)

    def say(
        self,
        text: str,
        nodes: Iterable[str | None] = (),
        level: int = logging.WARNING,
        kind: Hashable = None,
    ) -> None:
        """A sentence.

        Args:
            nodes: where it goes; to the sampling's own node unless given.
            kind: of several sentences of one kind the first is said; what is wrong at one layer is
                wrong at each, in other numbers.
        """
        kind = text if kind is None else kind
        if kind in self._said:
            return
        self._said.add(kind)
        text = readable(text)
        logging.log(level, "Nested Attention: %s", text)
        for node in dict.fromkeys(nodes or (self._node,)):
            if node is not None:
                # A node shows one text: what was said before stays above it.
                lines = self._on_node.setdefault(node, [])
                lines.append(text)
                _show(readable("\n".join(lines)), node)
