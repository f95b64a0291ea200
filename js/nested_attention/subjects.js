// @ts-check
/** Who is bound where: what the Apply nodes, prompts and samplers of the page know of subjects. */

import { allPlaces, isOn, keyOf, sourceOf, upstream, widgetOf, writtenAt } from "./graph.js";
import { readPrompt } from "./words.js";

export const APPLY = "NestedAttention_Apply";
export const SUBJECT = "NestedAttention_Subject";
export const RECORD = "NestedAttention_RecordMaps";
export const MAPS = "NestedAttention_ShowMaps";
export const ENCODE = "NestedAttention_EncodeSubject";
export const BINDING = "NESTED_ATTENTION_BINDING";
const BINDERS = ["NestedAttention_BindSubject", SUBJECT];

/** @typedef {import("./graph.js").Place} Place */
/** @typedef {{token: string, place: Place, image: string | null}} Bound */
/** @typedef {{text: string | null, place: Place, field: ReturnType<typeof writtenAt>, applies: Place[], bound: Bound[]}} Prompt */

/** @param {any} node */
export const isApply = (node) => node.type === APPLY && isOn(node);

/**
 * The Apply nodes whose subjects an output of this type has: the nearest, and those before it.
 * @param {Place} place
 * @param {string} type
 */
export const appliesOf = (place, type) => [
  ...(isApply(place.node) ? [place] : []),
  ...upstream(place, [type], isApply),
];

/** The bindings that are connected to one Apply node. @param {Place} apply @param {(place: Place) => string | null} imageOf @returns {Bound[]} */
export function bindingsOf(apply, imageOf) {
  return (apply.node.inputs ?? []).flatMap((/** @type {any} */ input, /** @type {number} */ slot) => {
    const place = input.type === BINDING ? sourceOf(apply, slot) : null;
    if (!place || !isOn(place.node) || !BINDERS.includes(place.node.type)) return [];
    const token = tokenOf(place);
    return token ? [{ token, place, image: imageOf(place) }] : [];
  });
}

/** The token that a node binds, read where the user writes it; null where another node says it. @param {Place} place */
function tokenOf(place) {
  const widget = widgetOf(place.node, "token");
  if (!widget) return null;
  const field = writtenAt(place, widget);
  const isLinked = field.place.node.inputs?.[field.slot]?.link != null;
  return isLinked || typeof field.widget.value !== "string" ? null : field.widget.value.trim();
}

/** The text fields of a node that makes a prompt of a CLIP. @param {any} node */
function textWidgets(node) {
  const makesPrompt = node.outputs?.some((/** @type {any} */ each) => each.type === "CONDITIONING");
  const readsClip = node.inputs?.some((/** @type {any} */ each) => each.type === "CLIP");
  if (!makesPrompt || !readsClip) return [];
  return (node.widgets ?? []).filter(isText);
}

/** @param {any} widget */
const isText = (widget) =>
  typeof widget.value === "string" &&
  (widget.type === "customtext" || widget.options?.multiline || widget.element?.tagName === "TEXTAREA");

/** What a text field will say, also where another node writes it; null where only the run will know. @param {ReturnType<typeof writtenAt>} field */
function textOf({ place, widget, slot }) {
  if (place.node.inputs?.[slot]?.link == null) return widget.value;
  const source = sourceOf(place, slot);
  const texts = source?.node.widgets?.filter((/** @type {any} */ each) => typeof each.value === "string");
  return texts?.length === 1 ? texts[0].value : null;
}

/**
 * All that the page knows before a run.
 * @param {any} graph the workflow's root
 * @param {(place: Place) => string | null} imageOf address of a binding's picture
 */
export function survey(graph, imageOf) {
  const places = allPlaces(graph).filter(({ node }) => isOn(node));
  const applies = places.filter(({ node }) => node.type === APPLY);
  const bindings = new Map(applies.map((each) => [keyOf(each), bindingsOf(each, imageOf)]));
  const boundBy = (/** @type {Place[]} */ group) => group.flatMap((each) => bindings.get(keyOf(each)) ?? []);
  /** @type {Prompt[]} */
  const prompts = places.flatMap((place) =>
    textWidgets(place.node).map((/** @type {any} */ widget) => {
      const found = appliesOf(place, "CLIP");
      const field = writtenAt(place, widget);
      return { place, field, text: textOf(field), applies: found, bound: boundBy(found) };
    }),
  );
  return { places, applies, bindings, prompts, everyone: boundBy(applies) };
}

/** Tokens that no prompt behind their Apply node says. @param {ReturnType<typeof survey>} found @returns {Map<string, Bound[]>} by the place of the node that binds them */
export function unsaid(found) {
  /** @type {Map<string, Bound[]>} */
  const silent = new Map();
  for (const apply of found.applies) {
    const readers = found.prompts.filter((each) => each.applies.some((one) => keyOf(one) === keyOf(apply)));
    if (!readers.length || readers.some((each) => each.text === null)) continue;
    for (const bound of found.bindings.get(keyOf(apply)) ?? []) {
      const isSaid = readers.some((each) => readPrompt(each.text ?? "", each.bound.map((one) => one.token)).said.has(bound.token));
      if (!isSaid) silent.set(keyOf(bound.place), [...(silent.get(keyOf(bound.place)) ?? []), bound]);
    }
  }
  return silent;
}

/** Samplers that read a prompt with subjects and draw with a model that knows none. @param {ReturnType<typeof survey>} found */
export function unboundSamplers(found) {
  const speaking = new Set(
    found.prompts
      .filter((each) => each.text && readPrompt(each.text, each.bound.map((one) => one.token)).said.size)
      .map((each) => keyOf(each.place)),
  );
  return found.places.filter((place) => {
    const inputs = (place.node.inputs ?? []).filter((/** @type {any} */ each) => each.link != null);
    const has = (/** @type {string} */ type) => inputs.some((/** @type {any} */ each) => each.type === type);
    if (!has("MODEL") || !has("CONDITIONING") || appliesOf(place, "MODEL").length) return false;
    return upstream(place, ["CONDITIONING"], () => true).some((each) => speaking.has(keyOf(each)));
  });
}
