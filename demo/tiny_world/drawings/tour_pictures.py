"""Draws the pictures of docs/tour.md, and one of the help: the real page, with the tiny world's models.

    python dev.py exec --tools demo/tiny_world/drawings/tour_pictures.py

starts a ComfyUI of its own and opens its page in Debian's chromium.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[3]
# Behind everything else: nothing of the demo may hide another module.
sys.path.append(str(ROOT / "demo"))

from tiny_world.drawings import templates  # noqa: E402
from tiny_world.drawings.server import tiny_world_server  # noqa: E402

TOUR = ROOT / "docs" / "tour"
HELP = ROOT / "js" / "docs" / "pictures"
WINDOW = (1600, 1000)
WIDE_WINDOW = (2600, 1300)  # a whole graph, near enough that the page writes the nodes' names
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
PATIENCE = 120.0  # seconds
READY = "return !!(window.app?.graph && window.LiteGraph?.registered_node_types['{type}'])"
ROW = "document.querySelectorAll('.nested-attention-chip').length"
PANEL = "document.querySelectorAll('.nested-attention-panel img')"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}


def main() -> int:
    TOUR.mkdir(exist_ok=True)
    with tiny_world_server({}) as url:
        page = Page(url)
        try:
            take_pictures(page)
        finally:
            page.driver.quit()
    return 0


def take_pictures(page: Page) -> None:
    template = json.loads((templates.OURS / "two_subjects.json").read_text(encoding="utf-8"))
    page.open(template)
    page.wait(f"return {ROW} > 0")
    page.run()
    page.driver.set_window_size(*WIDE_WINDOW)
    page.show_all()
    page.save(TOUR / "graph.jpg", width=WINDOW[0])
    page.driver.set_window_size(*WINDOW)
    prompt = page.node("CLIPTextEncode", "<anna>")
    page.centre(prompt, 1.6)
    page.type_into("<anna>", ", <")
    page.save(TOUR / "prompt.png", around=prompt)
    page.type_into("<anna>", "Anni> ")
    page.save(TOUR / "unknown_word.png", around=prompt)
    page.open(template)
    page.wait(f"return {ROW} > 0")
    for name, node_type, entry in (
        ("maps", "SaveImage", "Show where subjects act"),
        ("compare", "NestedAttention_Apply", "Compare with and without subjects"),
    ):
        page.choose(node_type, entry)
        page.wait(f"return [...{PANEL}].filter((each) => each.naturalWidth).length >= 2")
        page.save_element(TOUR / f"{name}.png", ".nested-attention-panel")
        page.script("document.querySelector('.nested-attention-panel button').click()")
    page.open(template)
    page.run()
    photograph = page.node("NestedAttention_ExamplePhotograph")
    page.centre(photograph, 1.0)
    page.save(HELP / "example_photograph.png", around=photograph, colours=64)
    page.open_menu(photograph)
    page.save(TOUR / "menu.png", around=photograph, margin=120)


class Page:
    """The editor in a browser."""

    def __init__(self, url: str) -> None:
        request = urllib.request.Request(
            f"{url}/api/settings",
            json.dumps(SETTINGS).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request).close()
        options = webdriver.ChromeOptions()
        for argument in (*ARGUMENTS, f"--window-size={WINDOW[0]},{WINDOW[1]}"):
            options.add_argument(argument)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(PATIENCE)
        self.driver.get(url)
        self.wait(READY.format(type="NestedAttention_Apply"))

    def script(self, text: str, *arguments: Any) -> Any:
        """What it returns; of a promise, what that comes to."""
        return self.driver.execute_script(text, *arguments)

    def wait(self, text: str) -> None:
        message = f"the page never became: {text}"
        WebDriverWait(self.driver, PATIENCE).until(lambda _: self.script(text), message)

    def open(self, workflow: dict[str, Any]) -> None:
        opened = "app.loadGraphData(arguments[0], true, true, 'tour')"
        self.script(f"return {opened}.then(() => true)", workflow)

    def run(self) -> None:
        self.script(
            "return new Promise((resolve) => { app.api.addEventListener('execution_success',"
            " () => resolve(true), {once: true}); app.queuePrompt(0, 1); })"
        )
        time.sleep(2)  # pictures load

    def node(self, node_type: str, text: str = "") -> int:
        """The id of the first node of a type, of which a widget holds a text."""
        return self.script(
            "return app.graph.nodes.find((each) => each.type === arguments[0] && (!arguments[1] ||"
            " each.widgets?.some((one) => String(one.value).includes(arguments[1])))).id",
            node_type,
            text,
        )

    def centre(self, node: int, scale: float) -> None:
        self.script(
            "app.canvas.ds.scale = arguments[1];"
            "app.canvas.centerOnNode(app.graph.getNodeById(arguments[0]));"
            "app.canvas.setDirty(true, true)",
            node,
            scale,
        )
        time.sleep(1)

    def show_all(self) -> None:
        self.script(
            "const [left, top, right, bottom] = app.graph.nodes.reduce(([a, b, c, d], {pos, size}) =>"
            " [Math.min(a, pos[0]), Math.min(b, pos[1] - 40), Math.max(c, pos[0] + size[0]),"
            " Math.max(d, pos[1] + size[1])], [1e9, 1e9, -1e9, -1e9]);"
            "const scale = Math.min((innerWidth - 100) / (right - left),"
            " (innerHeight - 160) / (bottom - top));"
            "app.canvas.ds.scale = scale; app.canvas.ds.offset = [80 / scale - left, 100 / scale - top];"
            "app.canvas.setDirty(true, true)"
        )
        time.sleep(1)

    def type_into(self, text: str, keys: str) -> None:
        """At the end of the first field that holds a text."""
        field = self.script(
            "const field = [...document.querySelectorAll('textarea')].find((each) =>"
            " each.value.includes(arguments[0])); field.focus(); field.setSelectionRange(1e4, 1e4);"
            "return field",
            text,
        )
        field.send_keys(keys)
        time.sleep(1)

    def choose(self, node_type: str, entry: str) -> None:
        self.script(
            "app.collectNodeMenuItems(app.graph.getNodeById(arguments[0]))"
            ".find((each) => each?.content === arguments[1]).callback()",
            self.node(node_type),
            entry,
        )

    def box(self, node: int) -> tuple[int, int, int, int]:
        """A node's place on the screen: left, top, right, bottom."""
        left, top, right, bottom = self.script(
            "const {pos, size} = app.graph.getNodeById(arguments[0]);"
            "const {scale, offset} = app.canvas.ds;"
            "const {left, top} = app.canvas.canvas.getBoundingClientRect();"
            "const at = (x, y) => [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale];"
            "return [...at(pos[0], pos[1] - 30), ...at(pos[0] + size[0], pos[1] + size[1])]",
            node,
        )
        return int(left), int(top), int(right), int(bottom)

    def open_menu(self, node: int) -> None:
        left, top, *_ = self.box(node)
        ActionChains(self.driver).move_by_offset(left + 60, top + 16).context_click().perform()
        time.sleep(1)

    def save(
        self,
        path: Path,
        around: int | None = None,
        margin: int = 8,
        colours: int = 256,
        width: int | None = None,
    ) -> None:
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as screen:
            picture = screen.convert("RGB")
        if around is not None:
            left, top, right, bottom = self.box(around)
            edges = (left - 8, top - 8, right + margin, bottom + margin)
            picture = picture.crop(edges)
        if width is not None:
            picture = picture.resize((width, picture.height * width // picture.width))
        if path.suffix == ".png":
            picture = picture.quantize(colours)
        picture.save(path, optimize=True, quality=85)
        print(f"{path.relative_to(ROOT)}: {picture.size}, {path.stat().st_size} B")

    def save_element(self, path: Path, selector: str) -> None:
        element = self.driver.find_element("css selector", selector)
        path.write_bytes(element.screenshot_as_png)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} B")


if __name__ == "__main__":
    sys.exit(main())
