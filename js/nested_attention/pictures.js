// @ts-check
/** The picture of a subject: what its node showed after a run, else the photograph that is loaded. */

import { upstream, widgetOf } from "./graph.js";

const WAY = ["NESTED_ATTENTION_SUBJECT", "IMAGE"];

/** @param {any} app @param {any} api */
export function pictureFinder(app, api) {
  /** @param {Record<string, string>} file */
  const address = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

  /** @param {import("./graph.js").Place} place */
  function pictureOn({ node, within }) {
    // Two nodes may have the same id where they are in different subgraphs.
    const key = within.length ? `${node.graph.id}:${node.id}` : node.id;
    const shown = app.nodeOutputs?.[key]?.images?.[0];
    if (shown?.filename) {
      return address({ filename: shown.filename, subfolder: shown.subfolder ?? "", type: shown.type ?? "temp" });
    }
    const loaded = widgetOf(node, "image")?.value;
    if (typeof loaded !== "string" || !loaded) return null;
    // Load Image writes `folder/name.png [output]`; without brackets it is the input folder.
    const [, path, type = "input"] = /^(.*?)(?: \[(\w+)\])?$/u.exec(loaded) ?? [];
    const cut = path.lastIndexOf("/");
    return address({ filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type });
  }

  /** @param {import("./graph.js").Place} place of the node that binds a subject */
  return function imageOf(place) {
    for (const each of [place, ...upstream(place, WAY, () => true)]) {
      const found = pictureOn(each);
      if (found) return found;
    }
    return null;
  };
}
