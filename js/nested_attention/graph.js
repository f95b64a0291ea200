// @ts-check
/**
 * Questions about the graph on the page: which nodes feed which, through reroutes and subgraphs.
 *
 * A place is a node together with the subgraph nodes that one enters to get to it, because one
 * subgraph may stand in a workflow several times.
 */

const SUBGRAPH_INPUT = -10; // the id that LiteGraph gives to a subgraph's own input node
const MUTED = 2;
const BYPASSED = 4;

/** @typedef {{node: any, within: any[]}} Place */

/**
 * Every node of a workflow, those inside subgraphs too.
 * @param {any} graph
 * @param {any[]} within the subgraph nodes around it, outermost first
 * @returns {Place[]}
 */
export function allPlaces(graph, within = []) {
  return (graph?.nodes ?? []).flatMap((/** @type {any} */ node) => {
    const inside =
      isSubgraph(node) && !within.includes(node) ? allPlaces(node.subgraph, [...within, node]) : [];
    return [{ node, within }, ...inside];
  });
}

/** @param {any} node */
const isSubgraph = (node) => Boolean(node.isSubgraphNode?.() && node.subgraph);

/** Whether a node takes part in the run. @param {any} node */
export const isOn = (node) => node.mode !== MUTED && node.mode !== BYPASSED;

/**
 * The place whose output an input is connected to, with reroutes and subgraphs looked through.
 * @param {Place} place
 * @param {number} slot number of the input
 * @returns {(Place & {slot: number}) | null}
 */
export function sourceOf({ node, within }, slot) {
  const linkId = node.inputs?.[slot]?.link;
  return linkId == null ? null : originOf(node.graph, linkId, within);
}

/** @param {any} graph @param {number} id */
const linkOf = (graph, id) => graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];

/** Some releases write the id as a text. @param {any} link */
const isFromOutside = (link) => Number(link.origin_id) === SUBGRAPH_INPUT;

/**
 * Where the user writes what a widget says: the widget itself, or the one that a subgraph shows of it.
 * @param {Place} place
 * @param {any} widget
 * @returns {{place: Place, widget: any, slot: number}} slot: of the input that belongs to it, -1 without one
 */
export function writtenAt(place, widget) {
  const { node, within } = place;
  const slot = (node.inputs ?? []).findIndex((/** @type {any} */ each) => each.widget?.name === widget.name);
  const linkId = node.inputs?.[slot]?.link;
  const link = linkId == null ? null : linkOf(node.graph, linkId);
  const around = within[within.length - 1];
  if (!link || !around || !isFromOutside(link)) return { place, widget, slot };
  const input = around.inputs?.[link.origin_slot];
  const shown = input && widgetOf(around, input.widget?.name ?? input.name);
  if (!shown) return { place, widget, slot };
  return writtenAt({ node: around, within: within.slice(0, -1) }, shown);
}

/** @param {any} graph @param {number} linkId @param {any[]} within @returns {(Place & {slot: number}) | null} */
function originOf(graph, linkId, within) {
  const link = linkOf(graph, linkId);
  if (!link) return null;
  if (isFromOutside(link)) {
    const around = within[within.length - 1];
    return around
      ? sourceOf({ node: around, within: within.slice(0, -1) }, link.origin_slot)
      : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node) return null;
  if (isSubgraph(node)) {
    const inner = node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0];
    return inner == null ? null : originOf(node.subgraph, inner, [...within, node]);
  }
  const place = { node, within };
  if (node.type === "Reroute") return sourceOf(place, 0);
  if (node.mode === BYPASSED) return bypassed(place, link.origin_slot);
  return { ...place, slot: link.origin_slot };
}

/** What a bypassed node hands on: the first of its inputs of the output's type. @param {Place} place @param {number} slot */
function bypassed(place, slot) {
  const type = place.node.outputs?.[slot]?.type;
  const index = (place.node.inputs ?? []).findIndex(
    (/** @type {any} */ each) => each.type === type && each.link != null,
  );
  return index < 0 ? null : sourceOf(place, index);
}

/**
 * The places that feed a place's inputs of one type.
 * @param {Place} place
 * @param {string} type socket type, such as `CLIP`
 */
export function sourcesOfType(place, type) {
  return (place.node.inputs ?? []).flatMap((/** @type {any} */ input, /** @type {number} */ slot) => {
    if (input.type !== type) return [];
    const source = sourceOf(place, slot);
    return source ? [source] : [];
  });
}

/**
 * All nodes of one kind on the way up from a place, along sockets of the given types.
 * @param {Place} place
 * @param {string[]} types
 * @param {(node: any) => boolean} wanted
 * @returns {Place[]} nearest first
 */
export function upstream(place, types, wanted) {
  /** @type {Place[]} */
  const found = [];
  const seen = new Set();
  let border = [place];
  while (border.length) {
    border = border
      .flatMap((each) => types.flatMap((type) => sourcesOfType(each, type)))
      .filter((each) => {
        const key = keyOf(each);
        return !seen.has(key) && seen.add(key);
      });
    found.push(...border.filter((each) => wanted(each.node)));
  }
  return found;
}

/** The same text for the same place. @param {Place} place */
export const keyOf = ({ node, within }) => [...within, node].map((each) => each.id).join(":");

/** @param {any} node @param {string} name */
export const widgetOf = (node, name) =>
  node.widgets?.find((/** @type {any} */ each) => each.name === name);
