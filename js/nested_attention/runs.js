// @ts-check
/** Runs of the graph that the page makes for itself: a changed copy of what is queued, saving nothing. */

import { say } from "./strings.js";

const PREVIEW = "PreviewImage";

/** @typedef {{class_type: string, inputs: Record<string, any>}} Entry */
/** @typedef {Record<string, Entry>} Prompt */
/** @typedef {{filename: string, subfolder: string, type: string}} File */

/** The ids of all nodes that a node reads, itself among them. @param {Prompt} prompt @param {string} id @returns {Set<string>} */
export function readBy(prompt, id, seen = new Set()) {
  if (seen.has(id) || !prompt[id]) return seen;
  seen.add(id);
  for (const value of Object.values(prompt[id].inputs)) {
    if (Array.isArray(value)) readBy(prompt, String(value[0]), seen);
  }
  return seen;
}

/**
 * The part of a prompt that draws its pictures, and saves none.
 * @param {Prompt} prompt @param {(id: string) => boolean} wanted of those nodes that show pictures
 * @returns {Prompt}
 */
export function pictures(prompt, wanted = () => true) {
  const shown = structuredClone(prompt);
  for (const entry of Object.values(shown)) {
    if (entry.class_type !== "SaveImage") continue;
    entry.class_type = PREVIEW;
    entry.inputs = { images: entry.inputs.images };
  }
  const needed = previews(shown)
    .filter(wanted)
    .flatMap((id) => [...readBy(shown, id)]);
  return Object.fromEntries(needed.map((id) => [id, shown[id]]));
}

/** The nodes of a prompt that show its pictures. @param {Prompt} prompt */
export const previews = (prompt) => Object.keys(prompt).filter((id) => prompt[id].class_type === PREVIEW);

/**
 * Runs a prompt.
 * @param {any} api @param {Prompt} prompt @param {any} workflow
 * @returns {Promise<Map<string, any>>} what each node showed
 * @throws where the run does not end well
 */
export async function run(api, prompt, workflow) {
  /** @type {Map<string, Map<string, any>>} */
  const found = new Map(); // by prompt: events may come before its id is known
  /** @type {Map<string, string>} */
  const ended = new Map();
  const onExecuted = (/** @type {any} */ { detail }) => {
    const own = found.get(detail.prompt_id) ?? new Map();
    found.set(detail.prompt_id, own.set(String(detail.node), detail.output ?? {}));
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
        if (how === "execution_success") resolve(found.get(id ?? "") ?? new Map());
        else if (how) reject(new Error(say("runStopped")));
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

/** Shows that something did not work. @param {any} app @param {string} title @param {unknown} error */
export function tellError(app, title, error) {
  const detail = error instanceof Error ? error.message : String(error);
  app.extensionManager?.toast?.add?.({ severity: "error", summary: title, detail, life: 8000 });
}

/** Where the page finds a file of a run. @param {any} api @param {File} file */
export const addressOf = (api, { filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
