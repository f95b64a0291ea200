// @ts-check
/** A window over the page with pictures in it. */

import { say } from "./strings.js";

/** @param {string} className @param {...(Node | string)} inside */
export function box(className, ...inside) {
  const element = document.createElement("div");
  element.className = className;
  element.append(...inside);
  return element;
}

/** Opens the panel; another one that is open closes. @param {(Node | string)[]} title @param {Node[]} content */
export function openPanel(title, content) {
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "✕";
  close.setAttribute("aria-label", say("close"));
  const panel = box("nested-attention-panel", box("nested-attention-title", ...title, close), ...content);
  panel.setAttribute("role", "dialog");
  close.addEventListener("click", () => panel.remove());
  document.querySelector(".nested-attention-panel")?.remove();
  document.body.append(panel);
  close.focus();
}
