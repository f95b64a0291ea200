// @ts-check
/** One click: the graph's picture with its subjects and without them, same seed, side by side. */

import { picture } from "./row.js";
import { say } from "./strings.js";
import { APPLY } from "./subjects.js";

/** @typedef {{class_type: string, inputs: Record<string, any>}} Entry */
/** @typedef {Record<string, Entry>} Prompt */
/** @typedef {{filename: string, subfolder: string, type: string}} File */

const RECORD = "NestedAttention_RecordMaps";
const MAPS = "NestedAttention_ShowMaps";
/** What such a node hands on without its work: the input for each output. @type {Record<string, string[]>} */
const PASSES = { [APPLY]: ["model", "clip"], [RECORD]: ["model"] };

/** The ids of all nodes that a node reads, itself among them. @param {Prompt} prompt @param {string} id @returns {Set<string>} */
function readBy(prompt, id, seen = new Set()) {
  if (seen.has(id) || !prompt[id]) return seen;
  seen.add(id);
  for (const value of Object.values(prompt[id].inputs)) {
    if (Array.isArray(value)) readBy(prompt, String(value[0]), seen);
  }
  return seen;
}

/** The part of a prompt that draws its pictures, and saves none. @param {Prompt} prompt @returns {Prompt} */
export function pictures(prompt) {
  const shown = structuredClone(prompt);
  for (const entry of Object.values(shown)) {
    if (entry.class_type !== "SaveImage") continue;
    entry.class_type = "PreviewImage";
    entry.inputs = { images: entry.inputs.images };
  }
  const needed = Object.keys(shown)
    .filter((id) => shown[id].class_type === "PreviewImage")
    .map((id) => readBy(shown, id))
    .filter((ids) => ![...ids].some((id) => shown[id].class_type === MAPS));
  return Object.fromEntries(needed.flatMap((ids) => [...ids].map((id) => [id, shown[id]])));
}

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

/**
 * Runs a prompt and gathers the pictures of its output nodes.
 * @param {any} api @param {Prompt} prompt @param {any} workflow @param {string[]} outputs nodes whose pictures count
 * @returns {Promise<File[]>}
 */
async function run(api, prompt, workflow, outputs) {
  /** @type {Map<string, Map<string, File[]>>} */
  const found = new Map(); // by prompt: events may come before its id is known
  /** @type {Map<string, string>} */
  const ended = new Map();
  const onExecuted = (/** @type {any} */ { detail }) => {
    const node = String(detail.display_node ?? detail.node).split(":").pop() ?? "";
    if (!outputs.includes(node) || !detail.output?.images) return;
    const own = found.get(detail.prompt_id) ?? new Map();
    found.set(detail.prompt_id, own.set(node, detail.output.images));
  };
  let onEnd = (/** @type {any} */ _event) => {};
  const ends = ["execution_success", "execution_error", "execution_interrupted"];
  try {
    api.addEventListener("executed", onExecuted);
    return await new Promise((resolve, reject) => {
      /** @type {string | null} */
      let id = null;
      const settle = () => {
        const how = id === null ? undefined : ended.get(id);
        if (how === "execution_success") resolve([...(found.get(id ?? "")?.values() ?? [])].flat());
        else if (how) reject(new Error(say("compareStopped")));
      };
      onEnd = ({ type, detail }) => {
        ended.set(detail.prompt_id, type);
        settle();
      };
      for (const each of ends) api.addEventListener(each, onEnd);
      api.queuePrompt(0, { output: prompt, workflow }).then((/** @type {any} */ answer) => {
        id = answer.prompt_id;
        settle();
      }, reject);
    });
  } finally {
    api.removeEventListener("executed", onExecuted);
    for (const each of ends) api.removeEventListener(each, onEnd);
  }
}

/** @param {string} className @param {...(Node | string)} inside */
function box(className, ...inside) {
  const element = document.createElement("div");
  element.className = className;
  element.append(...inside);
  return element;
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
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "✕";
  close.setAttribute("aria-label", say("close"));
  const sides = [`◧ ${say("withSubjects")}`, `${say("withoutSubjects")} ◨`].map((each) => box("", each));
  const title = box("nested-attention-title", ...sides, close);
  const panel = box("nested-attention-compare", title, ...pairs);
  panel.setAttribute("role", "dialog");
  close.addEventListener("click", () => panel.remove());
  document.querySelector(".nested-attention-compare")?.remove();
  document.body.append(panel);
}

/**
 * Draws the graph twice and shows both.
 * @param {any} app @param {any} api
 */
export async function compare(app, api) {
  const { output, workflow } = await app.graphToPrompt();
  const drawn = pictures(output);
  const outputs = Object.keys(drawn).filter((id) => drawn[id].class_type === "PreviewImage");
  const names = outputs.map((id) => id.split(":").pop() ?? "");
  const address = (/** @type {File} */ file) => api.apiURL(`/view?${new URLSearchParams({ ...file })}`);
  try {
    const without = await run(api, withoutSubjects(drawn), workflow, names);
    // Last, so that the nodes keep showing what the subjects did.
    const withThem = await run(api, drawn, workflow, names);
    show(withThem.map(address), without.map(address));
  } catch (error) {
    app.extensionManager?.toast?.add?.({
      severity: "error",
      summary: say("compare"),
      detail: error instanceof Error ? error.message : String(error),
      life: 8000,
    });
  }
}
