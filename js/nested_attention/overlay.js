// @ts-check
/** One click: the maps of the subjects as layers over a finished picture. */

import { keyOf, upstream } from "./graph.js";
import { box, openPanel } from "./panel.js";
import { picture } from "./row.js";
import { addressOf, pictures, run, tellError } from "./runs.js";
import { say } from "./strings.js";
import { appliesOf, MAPS, RECORD } from "./subjects.js";

/** @typedef {import("./graph.js").Place} Place */
/** @typedef {import("./runs.js").Prompt} Prompt */
/** @typedef {import("./runs.js").File & {picture: number, token: string, colour: string}} Layer */
/** @typedef {{latent: [string, number], model: {node: string, input: string}}} Sampling */

const SHOWS = ["PreviewImage", "SaveImage"];
const LAYERS = "nested_attention_overlays"; // what Show Maps calls them
const OWN = { record: "nested_attention_record", maps: "nested_attention_maps", sheet: "nested_attention_sheet" };

/** Those of the last run. ComfyUI sends nothing of a node that it has in its cache, in older releases. */
let last = { prompt: "", layers: /** @type {Layer[]} */ ([]) };

/** @param {any} node @param {string} type */
const inputOf = (node, type) => (node.inputs ?? []).find((/** @type {any} */ each) => each.type === type && each.link != null);

/**
 * The sampler that drew what a node shows, where subjects act in it.
 * @param {Place} place of the node that shows a picture
 * @returns {Sampling | null}
 */
export function samplingOf(place) {
  if (!SHOWS.includes(place.node.type)) return null;
  const latentSlot = (/** @type {any} */ node) => (node.outputs ?? []).findIndex((/** @type {any} */ each) => each.type === "LATENT");
  const draws = (/** @type {any} */ node) => latentSlot(node) >= 0 && (inputOf(node, "MODEL") || inputOf(node, "GUIDER"));
  const [sampler] = upstream(place, ["IMAGE", "LATENT"], draws);
  if (!sampler) return null;
  const [reader] = [sampler, ...upstream(sampler, ["GUIDER"], () => true)].filter(({ node }) => inputOf(node, "MODEL"));
  if (!reader || !appliesOf(reader, "MODEL").length) return null;
  return {
    latent: [keyOf(sampler), latentSlot(sampler.node)],
    model: { node: keyOf(reader), input: inputOf(reader.node, "MODEL").name },
  };
}

/** The prompt of one picture, with its maps recorded and shown. @param {Prompt} prompt @param {string} shownBy @param {Sampling} sampling */
function recorded(prompt, shownBy, { latent, model }) {
  const copy = pictures(prompt, (id) => id === shownBy);
  const entry = copy[model.node];
  const record = { model: entry.inputs[model.input], steps: "", sites: "", values: false, preview: false };
  entry.inputs[model.input] = [OWN.record, 0];
  const maps = { record: [OWN.record, 1], samples: latent, show: "overview", picture: 0 };
  copy[OWN.record] = { class_type: RECORD, inputs: record };
  copy[OWN.maps] = { class_type: MAPS, inputs: maps };
  copy[OWN.sheet] = { class_type: "PreviewImage", inputs: { images: [OWN.maps, 0] } }; // or nothing runs
  return copy;
}

/** @param {any} api @param {import("./runs.js").File[]} drawn @param {Layer[]} layers */
function show(api, drawn, layers) {
  const stacks = drawn.map((file, index) => {
    const stack = box("nested-attention-stack", ...picture(addressOf(api, file)));
    for (const layer of layers.filter((each) => each.picture === index)) {
      const above = box("nested-attention-above", ...picture(addressOf(api, layer)));
      above.dataset.token = layer.token;
      stack.append(above);
    }
    return stack;
  });
  const subjects = new Map(layers.map(({ token, colour }) => [token, colour]));
  const switches = [...subjects].map(([token, colour]) => {
    const tick = document.createElement("input");
    tick.type = "checkbox";
    tick.checked = true;
    tick.style.accentColor = colour;
    tick.addEventListener("change", () => {
      for (const above of stacks.flatMap((each) => [.../** @type {any} */ (each.children)])) {
        if (above.dataset.token === token) above.hidden = !tick.checked;
      }
    });
    const label = document.createElement("label");
    label.append(tick, token);
    return label;
  });
  openPanel(switches, stacks);
}

/**
 * Draws a node's picture once more and shows where each subject acted in it.
 * @param {any} app @param {any} api @param {Place} place
 */
export async function showMaps(app, api, place) {
  const sampling = samplingOf(place);
  if (!sampling) return;
  try {
    const { output, workflow } = await app.graphToPrompt();
    const prompt = recorded(output, keyOf(place), sampling);
    const shown = await run(api, prompt, workflow);
    const text = JSON.stringify(prompt);
    const layers = shown.get(OWN.maps)?.[LAYERS] ?? (last.prompt === text ? last.layers : []);
    last = { prompt: text, layers };
    show(api, shown.get(keyOf(place))?.images ?? [], layers);
  } catch (error) {
    tellError(app, say("showMaps"), error);
  }
}
