"""A client of a ComfyUI server: queue a prompt, watch it, read what came out."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
from PIL import Image

Prompt = dict[str, dict[str, Any]]
Said = Callable[[str, str], None]

_HISTORY_TRIES = 200
_TEXT_EVENT = 3  # ComfyUI's number for a text that a node shows


class PromptError(RuntimeError):
    """The server refused the prompt, or a node failed; the text is the server's own."""


class ComfyClient:
    """Use as `async with ComfyClient(url) as client`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._id = uuid.uuid4().hex

    async def __aenter__(self) -> ComfyClient:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(
            f"{self._url}/ws?clientId={self._id}", max_msg_size=0
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._session.close()

    async def get(self, path: str) -> Any:
        """The JSON of a GET request."""
        async with self._session.get(f"{self._url}{path}") as response:
            response.raise_for_status()
            return await response.json()

    async def run(self, prompt: Prompt, said: Said | None = None) -> dict[str, Any]:
        """Runs the prompt; the outputs of its output nodes by node id.

        `said` is called with the node id and the text that the node shows.
        """
        prompt_id = await self._queue(prompt)
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY and said is not None:
                node, text = _text_on_node(message.data)
                if node:
                    said(node, text)
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue  # preview pictures
            event = json.loads(message.data)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "execution_error":
                raise PromptError(
                    f"{data['node_type']} (node {data['node_id']}): {data['exception_message']}"
                )
            if event["type"] == "execution_success":
                return await self._outputs(prompt_id)
        raise PromptError("the server closed the connection")

    async def read_image(self, image: dict[str, str]) -> Image.Image:
        """The picture that an output names, in RGB."""
        async with self._session.get(f"{self._url}/view", params=image) as response:
            response.raise_for_status()
            with Image.open(io.BytesIO(await response.read())) as opened:
                return opened.convert("RGB")

    async def _outputs(self, prompt_id: str) -> dict[str, Any]:
        # The server says that it is done a moment before it writes its history.
        for _ in range(_HISTORY_TRIES):
            history = await self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            await asyncio.sleep(0.05)
        raise PromptError("the server has no history of the prompt that it ran")

    async def _queue(self, prompt: Prompt) -> str:
        body = {"prompt": prompt, "client_id": self._id}
        async with self._session.post(f"{self._url}/prompt", json=body) as response:
            answer = await response.json()
            if response.status != 200:
                raise PromptError(json.dumps(answer, indent=1))
            return answer["prompt_id"]


def _text_on_node(message: bytes) -> tuple[str, str]:
    """Node id and text of such a message; both empty where it is a picture."""
    if int.from_bytes(message[:4], "big") != _TEXT_EVENT:
        return "", ""
    length = int.from_bytes(message[4:8], "big")
    return message[8 : 8 + length].decode(), message[8 + length :].decode()
