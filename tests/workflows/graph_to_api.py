"""Graph JSON, as the editor saves it, to an API prompt, as the editor queues it.

Only what the example workflows use: no subgraphs, reroutes, muted or primitive nodes.
"""

from __future__ import annotations

from typing import Any

_FRONT_END_ONLY = {"MarkdownNote", "Note"}
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}


def api_prompt(graph: dict[str, Any], node_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a graph. `node_info` is the server's `/object_info`."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": {**_widget_values(node, node_info[node["type"]]), **_linked(node, links)},
        }
        for node in graph["nodes"]
        if node["type"] not in _FRONT_END_ONLY
    }


def _linked(node: dict[str, Any], links: dict[int, list[Any]]) -> dict[str, Any]:
    return {
        socket["name"]: links[socket["link"]]
        for socket in node["inputs"]
        if socket.get("link") is not None
    }


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Saved widget values stand in the order of the node's definition; later inputs have none."""
    values = list(node.get("widgets_values", []))
    found: dict[str, Any] = {}
    for name, (kind, *options) in _inputs(info):
        settings = options[0] if options else {}
        is_widget = isinstance(kind, list) or kind in _WIDGETS
        if not is_widget or settings.get("forceInput"):
            continue
        if values:
            found[name] = values.pop(0)
        elif "default" in settings:
            found[name] = settings["default"]
        if settings.get("control_after_generate") or name in ("seed", "noise_seed"):
            values.pop(0)
    return found


def _inputs(info: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (name, definition)
        for group in ("required", "optional")
        for name, definition in info["input"].get(group, {}).items()
    ]
