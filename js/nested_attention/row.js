// @ts-check
/** A row at the foot of a node: a chip for each subject, and what is wrong before the run. */

const NAME = "nested_attention_row";
const LINE = 26; // pixels of height for a line of chips or a note
const CHIPS_IN_LINE = 3;
const SIDES = 30; // pixels of a node's width that no text has
const MARGIN = 4; // around the row in the classic rendering

const STYLE = `
.nested-attention-row { display: flex; flex-wrap: wrap; gap: 4px; align-content: flex-start;
  overflow: hidden; font: 12px sans-serif; color: var(--input-text, #ddd); }
.nested-attention-chip { display: inline-flex; align-items: center; gap: 4px; height: 22px; padding: 0 7px 0 2px;
  border: 1px solid var(--border-color, #555); border-radius: 11px; background: transparent;
  color: inherit; font: inherit; opacity: 0.55; cursor: pointer; max-width: 100%; }
.nested-attention-chip.lit { opacity: 1; border-color: #d8a657; }
.nested-attention-chip img { width: 18px; height: 18px; border-radius: 50%; object-fit: cover; }
.nested-attention-chip span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-left: 4px; }
.nested-attention-note { flex-basis: 100%; line-height: 18px; overflow-wrap: anywhere; color: #e0af68; }
.nested-attention-list { position: fixed; z-index: 10000; min-width: 140px; max-height: 220px; overflow: auto;
  background: var(--comfy-menu-bg, #222); color: var(--input-text, #ddd); font: 13px sans-serif;
  border: 1px solid var(--border-color, #555); border-radius: 6px; padding: 3px; }
.nested-attention-list div { display: flex; align-items: center; gap: 6px; padding: 3px 8px; border-radius: 4px; cursor: pointer; }
.nested-attention-list div[aria-selected="true"] { background: var(--comfy-input-bg, #444); }
.nested-attention-list img { width: 22px; height: 22px; border-radius: 50%; object-fit: cover; }
.nested-attention-panel { position: fixed; z-index: 10000; top: 10vh; left: 50%; transform: translateX(-50%);
  max-width: 90vw; max-height: 80vh; overflow: auto; padding: 12px; border-radius: 8px; font: 13px sans-serif;
  background: var(--comfy-menu-bg, #222); color: var(--input-text, #ddd); border: 1px solid var(--border-color, #555); }
.nested-attention-title { display: flex; justify-content: space-between; gap: 16px; padding-bottom: 8px; }
.nested-attention-title label { display: inline-flex; align-items: center; gap: 4px; }
.nested-attention-title button { background: none; border: none; color: inherit; cursor: pointer; }
.nested-attention-stack { position: relative; width: fit-content; }
.nested-attention-stack img { display: block; min-width: 256px; max-width: 80vw; max-height: 60vh; }
.nested-attention-above { position: absolute; inset: 0; }
.nested-attention-above img { width: 100%; height: 100%; max-width: none; max-height: none; }
.nested-attention-pair input { width: 100%; }
`;

export function addStyle() {
  const style = document.createElement("style");
  style.textContent = STYLE;
  document.head.append(style);
}

/** @typedef {{token: string, image: string | null, lit: boolean, title: string, onClick: () => void}} Chip */
/** @typedef {{chips: Chip[], notes: string[]}} Content */

/** @type {WeakMap<any, {widget: any, shown: string, lines: number}>} */
const rows = new WeakMap();

/** @param {string | null} address */
export function picture(address) {
  if (!address) return [];
  const image = document.createElement("img");
  image.src = address;
  image.alt = "";
  image.onerror = () => image.remove();
  return [image];
}

/** @param {Chip} chip */
function chipElement({ token, image, lit, title, onClick }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = lit ? "nested-attention-chip lit" : "nested-attention-chip";
  button.title = title;
  button.setAttribute("aria-pressed", String(lit));
  const label = document.createElement("span");
  label.textContent = token; // never as HTML: a token looks like a tag
  button.append(...picture(image), label);
  button.addEventListener("click", onClick);
  return button;
}

/** @param {string} text */
function noteElement(text) {
  const note = document.createElement("div");
  note.className = "nested-attention-note";
  note.setAttribute("role", "status");
  note.textContent = text;
  return note;
}

/**
 * Shows a row on a node, changes it, or takes it away where there is nothing to show. Not on the node
 * of a subgraph: its widgets are those that the user chose to show of what is inside.
 * @param {any} node
 * @param {Content} content
 */
export function showRow(node, content) {
  const shown = JSON.stringify([content, node.size[0]]);
  if (node.isSubgraphNode?.()) return;
  const row = rows.get(node);
  if (!content.chips.length && !content.notes.length) {
    if (row) takeAway(node, row);
    return;
  }
  if (row?.shown === shown && node.widgets?.includes(row.widget)) return;
  const notes = content.notes.map((text) => linesOf(text, node.size[0] - SIDES));
  const lines = notes.reduce((sum, each) => sum + each, Math.ceil(content.chips.length / CHIPS_IN_LINE));
  const own = row && node.widgets?.includes(row.widget) ? row : newRow(node);
  const isTaller = own.lines !== lines;
  Object.assign(own, { shown, lines });
  own.widget.element.replaceChildren(...content.chips.map(chipElement), ...content.notes.map(noteElement));
  if (isTaller) fit(node);
}

const pen = document.createElement("canvas").getContext("2d");

/** How many lines a note takes. @param {string} text @param {number} width in pixels */
function linesOf(text, width) {
  if (!pen) return 1;
  pen.font = "12px sans-serif";
  // A line breaks between words, so none is quite full.
  return Math.max(1, Math.ceil((pen.measureText(text).width * 1.1) / Math.max(width, LINE)));
}

/** @param {any} node */
function newRow(node) {
  const element = document.createElement("div");
  element.className = "nested-attention-row";
  const row = { widget: /** @type {any} */ (null), shown: "", lines: 0 };
  const height = () => row.lines * LINE + 2 * MARGIN;
  row.widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
    getValue: () => "",
    setValue: () => {},
  });
  // The workflow file and the prompt stay as they are without this script.
  row.widget.serialize = false;
  row.widget.serializeValue = () => undefined;
  rows.set(node, row);
  return row;
}

/** @param {any} node @param {{widget: any}} row */
function takeAway(node, { widget }) {
  rows.delete(node);
  if (!node.widgets?.includes(widget)) return;
  if (node.removeWidget) node.removeWidget(widget);
  else {
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
  }
  node.setDirtyCanvas?.(true, true);
}

/** Grows a node to its content, and never shrinks it. @param {any} node */
function fit(node) {
  const [width, height] = node.computeSize();
  if (height > node.size[1]) node.setSize([Math.max(width, node.size[0]), height]);
  node.setDirtyCanvas?.(true, true);
}
