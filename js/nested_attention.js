// @ts-check
/**
 * Nested Attention in the graph editor. Everything works without this script; with it, the page says
 * before the run who is bound where.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { hideAdvanced } from "./nested_attention/advanced.js";
import { keepColours } from "./nested_attention/colours.js";
import { compare } from "./nested_attention/compare.js";
import { allPlaces, keyOf, widgetOf } from "./nested_attention/graph.js";
import { menuItems } from "./nested_attention/menus.js";
import { samplingOf, showMaps } from "./nested_attention/overlay.js";
import { pictureFinder } from "./nested_attention/pictures.js";
import { addStyle, showRow } from "./nested_attention/row.js";
import { loadStrings, say } from "./nested_attention/strings.js";
import { ENCODE, survey, unboundSamplers, unsaid } from "./nested_attention/subjects.js";
import { offerTokens, write } from "./nested_attention/suggestions.js";
import { readPrompt, withWord } from "./nested_attention/words.js";

const LOOK_EVERY = 400; // milliseconds: soon enough for a reader, nothing for the machine

const ALWAYS_ADVANCED = "Comfy.Node.AlwaysShowAdvancedWidgets";

const imageOf = pictureFinder(app, api);
const root = () => app.rootGraph ?? app.graph;
/** @type {Set<any>} nodes that have a row */
let marked = new Set();

/** The text area of a widget, in the classic rendering and in the new one. @param {any} node @param {any} widget */
function fieldOf(node, widget) {
  const own = widget.inputEl ?? widget.element;
  if (own instanceof HTMLTextAreaElement && own.isConnected) return own;
  const areas = document.querySelectorAll(`[data-node-id="${node.id}"] textarea`);
  return /** @type {HTMLTextAreaElement | undefined} */ (
    [...areas].find((each) => /** @type {HTMLTextAreaElement} */ (each).value === widget.value)
  );
}

/** Writes a token where the caret was last. @param {any} node @param {any} widget @param {string} token */
function insert(node, widget, token) {
  const field = fieldOf(node, widget);
  const start = field?.selectionStart ?? widget.value.length;
  const { text, caret } = withWord(widget.value, start, field?.selectionEnd ?? start, token);
  if (field) write(field, text, caret);
  else {
    widget.value = text;
    widget.callback?.(text);
  }
}

/** @param {ReturnType<typeof survey>["prompts"][number]} prompt @param {ReturnType<typeof survey>} found @returns {import("./nested_attention/row.js").Content} */
function promptRow(prompt, found) {
  const text = prompt.text ?? "";
  if (!prompt.applies.length) {
    const { said } = readPrompt(text, found.everyone.map((each) => each.token));
    return { chips: [], notes: [...said].map((token) => say("notOfApply", { token })) };
  }
  const { said, unknown } = readPrompt(text, prompt.bound.map((each) => each.token));
  const chips = prompt.bound.map(({ token, image }) => ({
    token,
    image,
    lit: said.has(token),
    title: say("insertToken", { token }),
    onClick: () => insert(prompt.field.place.node, prompt.field.widget, token),
  }));
  return { chips, notes: unknown.map((word) => say("unknownWord", { word })) };
}

/** What each node has to show. @returns {Map<any, import("./nested_attention/row.js").Content>} */
function contents() {
  /** @type {Map<any, import("./nested_attention/row.js").Content>} */
  const content = new Map();
  /** @param {any} node @param {Partial<import("./nested_attention/row.js").Content>} more */
  const put = (node, { chips = [], notes = [] }) => {
    const has = content.get(node) ?? { chips: [], notes: [] };
    const fresh = chips.filter((each) => !has.chips.some((one) => one.token === each.token));
    content.set(node, {
      chips: [...has.chips, ...fresh],
      notes: [...new Set([...has.notes, ...notes])],
    });
  };
  const found = survey(root(), imageOf);
  if (!found.applies.length) return content;
  for (const prompt of found.prompts) put(prompt.place.node, promptRow(prompt, found));
  for (const group of unsaid(found).values()) {
    for (const { place, token } of group) put(place.node, { notes: [say("unsaid", { token })] });
  }
  for (const { node } of found.places) {
    const input = node.type === ENCODE && node.inputs?.find((/** @type {any} */ each) => each.name === "clip_vision");
    if (input && input.link == null) put(node, { notes: [say("needsClipVision")] });
  }
  for (const { node } of unboundSamplers(found)) put(node, { notes: [say("samplerUnbound")] });
  for (const { node, within } of found.applies) {
    const several = (found.bindings.get(keyOf({ node, within })) ?? []).length > 1;
    if (several && widgetOf(node, "separation")?.value === 0) put(node, { notes: [say("separationHint")] });
  }
  return content;
}

function look() {
  if (document.hidden || !root()) return;
  keepColours(app.canvas);
  const content = contents();
  for (const node of marked) if (!content.has(node)) showRow(node, { chips: [], notes: [] });
  for (const [node, each] of content) showRow(node, each);
  marked = new Set(content.keys());
}

/** The tokens that a text area of the page may say. @param {HTMLTextAreaElement} field */
function offersFor(field) {
  const prompt = survey(root(), imageOf).prompts.find(
    (each) => each.bound.length && fieldOf(each.field.place.node, each.field.widget) === field,
  );
  return prompt?.bound ?? [];
}

/** Shows the maps over the picture of a node, where there is one with subjects in it. @param {any} node */
function mapsOf(node) {
  const place = allPlaces(root()).find((each) => each.node === node);
  return place && samplingOf(place) ? () => showMaps(app, api, place) : null;
}

app.registerExtension({
  name: "NestedAttention",
  async setup() {
    addStyle();
    await loadStrings(app, api);
    offerTokens(offersFor);
    setInterval(look, LOOK_EVERY);
  },
  nodeCreated(/** @type {any} */ node) {
    if (!String(node.comfyClass ?? "").startsWith("NestedAttention_")) return;
    hideAdvanced(node, () => Boolean(app.extensionManager?.setting?.get(ALWAYS_ADVANCED)));
  },
  getNodeMenuItems: (/** @type {any} */ node) => menuItems(node, { compare: () => compare(app, api), showMaps: mapsOf(node) }),
});
