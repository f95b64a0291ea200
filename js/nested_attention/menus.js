// @ts-check
/** What the menus of nodes offer: a subject of a picture, and one more subject for an Apply node. */

import { say } from "./strings.js";
import { APPLY, BINDING, SUBJECT } from "./subjects.js";

const GAP = 40;

/** @param {any} node @param {string} type */
const outputOf = (node, type) => (node.outputs ?? []).findIndex((/** @type {any} */ each) => each.type === type);

/** @param {any} node @param {string} type */
const inputOf = (node, type) =>
  (node.inputs ?? []).findIndex((/** @type {any} */ each) => each.type === type && each.link == null);

/** @param {any} graph @param {string} type @param {number[]} pos */
function add(graph, type, pos) {
  const node = globalThis.LiteGraph.createNode(type);
  graph.add(node);
  node.pos = pos;
  return node;
}

/** A token that no subject of the graph has yet. @param {any} graph */
function freshToken(graph) {
  const taken = new Set(
    graph.nodes.flatMap((/** @type {any} */ node) => (node.widgets ?? []).map((/** @type {any} */ each) => each.value)),
  );
  for (let number = 1; ; number++) {
    const token = number === 1 ? "<person>" : `<person${number}>`;
    if (!taken.has(token)) return token;
  }
}

/** @param {any} graph @param {number[]} pos */
function addSubjectNode(graph, pos) {
  const token = freshToken(graph);
  const subject = add(graph, SUBJECT, pos);
  const widget = subject.widgets?.find((/** @type {any} */ each) => each.name === "token");
  if (widget) widget.value = token;
  return subject;
}

/** The node where a graph's only way of this type begins. @param {any} graph @param {string} type */
function beginning(graph, type) {
  const found = graph.nodes.filter(
    (/** @type {any} */ node) =>
      outputOf(node, type) >= 0 && !node.inputs?.some((/** @type {any} */ each) => each.type === type),
  );
  return found.length === 1 ? found[0] : null; // of several, the user chooses
}

/** Puts an Apply node behind the loader of model and of text encoder: all that read them read it then. @param {any} graph @param {number[]} pos */
function applyBehindLoaders(graph, pos) {
  const loaders = ["MODEL", "CLIP"].map((type) => [type, beginning(graph, type)]);
  const apply = add(graph, APPLY, pos);
  for (const [type, loader] of loaders) {
    if (!loader) continue;
    const from = outputOf(loader, type);
    const readers = [...(loader.outputs[from].links ?? [])].map((id) => graph.getLink?.(id) ?? graph.links[id]);
    for (const link of readers) {
      const reader = graph.getNodeById(link.target_id);
      if (reader) apply.connect(outputOf(apply, type), reader, link.target_slot);
    }
    loader.connect(from, apply, inputOf(apply, type));
  }
  return apply;
}

/** One step for undo. @param {any} graph @param {() => void} change */
function asOneChange(graph, change) {
  graph.beforeChange?.();
  try {
    change();
  } finally {
    graph.afterChange?.();
    graph.setDirtyCanvas?.(true, true);
  }
}

/** @param {any} node with an output of type IMAGE */
function bindAsSubject(node) {
  const graph = node.graph;
  asOneChange(graph, () => {
    const [x, y] = node.pos;
    const subject = addSubjectNode(graph, [x + node.size[0] + GAP, y]);
    node.connect(outputOf(node, "IMAGE"), subject, inputOf(subject, "IMAGE"));
    const apply =
      graph.nodes.find((/** @type {any} */ each) => each.type === APPLY) ??
      applyBehindLoaders(graph, [x + node.size[0] + subject.size[0] + 2 * GAP, y]);
    subject.connect(outputOf(subject, BINDING), apply, inputOf(apply, BINDING));
  });
}

/** @param {any} apply */
function addSubject(apply) {
  const graph = apply.graph;
  asOneChange(graph, () => {
    const slot = inputOf(apply, BINDING);
    const [x, y] = apply.pos;
    const below = y + apply.size[1] + GAP;
    const subject = addSubjectNode(graph, [x, below]);
    const photograph = add(graph, "LoadImage", [x, below]);
    photograph.pos = [x - photograph.size[0] - GAP, below];
    photograph.connect(outputOf(photograph, "IMAGE"), subject, inputOf(subject, "IMAGE"));
    subject.connect(outputOf(subject, BINDING), apply, slot);
  });
}

/** @param {any} node @param {{compare: () => void, showMaps: (() => void) | null}} runs what the page can run for this node */
export function menuItems(node, { compare, showMaps }) {
  const items = [];
  if (node.type === APPLY) {
    items.push({ content: say("addSubject"), callback: () => addSubject(node) });
    items.push({ content: say("compare"), callback: compare });
  }
  if (outputOf(node, "IMAGE") >= 0) {
    items.push({ content: say("bindAsSubject"), callback: () => bindAsSubject(node) });
  }
  if (showMaps) items.push({ content: say("showMaps"), callback: showMaps });
  return items;
}
