// @ts-check
/** One click: the graph's picture with its subjects and without them, same seed, one over the other. */

import { box, openPanel } from "./panel.js";
import { picture } from "./row.js";
import { addressOf, pictures, previews, readBy, run, tellError } from "./runs.js";
import { say } from "./strings.js";
import { APPLY, MAPS, RECORD } from "./subjects.js";

/** @typedef {import("./runs.js").Prompt} Prompt */

/** What such a node hands on without its work: the input for each output. @type {Record<string, string[]>} */
const PASSES = { [APPLY]: ["model", "clip"], [RECORD]: ["model"] };

/** The same prompt without the nodes that put subjects into it. @param {Prompt} prompt @returns {Prompt} */
export function withoutSubjects(prompt) {
  const plain = structuredClone(prompt);
  /** @param {any} value @returns {any} */
  const before = (value) => {
    const node = Array.isArray(value) ? plain[value[0]] : null;
    const name = node && PASSES[node.class_type]?.[value[1]];
    return name ? before(node.inputs[name]) : value;
  };
  for (const { inputs } of Object.values(plain)) {
    for (const [name, value] of Object.entries(inputs)) inputs[name] = before(value);
  }
  return pictures(plain);
}

/** @param {string[]} withThem @param {string[]} without addresses of pictures */
function show(withThem, without) {
  const pairs = withThem.slice(0, without.length).map((address, index) => {
    const above = box("nested-attention-above", ...picture(address));
    const slider = document.createElement("input");
    slider.type = "range";
    slider.setAttribute("aria-label", `${say("withSubjects")} / ${say("withoutSubjects")}`);
    const wipe = () => {
      above.style.clipPath = `inset(0 ${100 - Number(slider.value)}% 0 0)`;
    };
    slider.addEventListener("input", wipe);
    wipe();
    return box("nested-attention-pair", box("nested-attention-stack", ...picture(without[index]), above), slider);
  });
  const sides = [`◧ ${say("withSubjects")}`, `${say("withoutSubjects")} ◨`].map((each) => box("", each));
  openPanel(sides, pairs);
}

/**
 * Draws the graph twice and shows both.
 * @param {any} app @param {any} api
 */
export async function compare(app, api) {
  try {
    const { output, workflow } = await app.graphToPrompt();
    // A sheet of maps is no picture of the graph, and without subjects there is none.
    const drawn = pictures(output, (id) => ![...readBy(output, id)].some((each) => output[each].class_type === MAPS));
    const addresses = (/** @type {Map<string, any>} */ shown) =>
      previews(drawn)
        .flatMap((id) => shown.get(id)?.images ?? [])
        .map((file) => addressOf(api, file));
    const without = await run(api, withoutSubjects(drawn), workflow);
    // Last, so that the nodes keep showing what the subjects did.
    const withThem = await run(api, drawn, workflow);
    show(addresses(withThem), addresses(without));
  } catch (error) {
    tellError(app, say("compare"), error);
  }
}
