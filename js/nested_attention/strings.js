// @ts-check
/** What the page says. English stands here; `locales/LANGUAGE/main.json` has the other languages. */

const ENGLISH = {
  bindAsSubject: "Bind as subject",
  addSubject: "Add subject",
  insertToken: "Write {token} into the prompt",
  unknownWord: "{word} is not bound to a subject.",
  notOfApply: "{token} is not known here: connect the CLIP of Apply Nested Attention.",
  unsaid: "No connected prompt says {token}.",
  samplerUnbound: "A prompt names a subject, but this model does not come from Apply Nested Attention.",
  separationHint: "Two or more subjects: separation 0.8 keeps them from mixing.",
  needsClipVision: "Connect clip_vision: this encoder reads photographs through a CLIP vision model.",
  compare: "Compare with and without subjects",
  showMaps: "Show where subjects act",
  runStopped: "The run of the graph did not end well, so there is nothing to show.",
  withSubjects: "with subjects",
  withoutSubjects: "without",
  close: "Close",
};

/** @type {Record<string, string>} */
let translated = {};

/** Reads the page's language. @param {any} app @param {any} api */
export async function loadStrings(app, api) {
  try {
    const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    const all = await (await api.fetchApi("/i18n")).json();
    translated = all?.[locale]?.nestedAttention ?? {};
  } catch {
    translated = {}; // English is always there
  }
}

/** @param {keyof typeof ENGLISH} key @param {Record<string, string>} [values] */
export function say(key, values = {}) {
  const text = translated[key] ?? ENGLISH[key];
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
