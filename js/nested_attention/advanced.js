// @ts-check
/**
 * Advanced inputs in the classic rendering, which shows them all unless its widgets carry marks of
 * their own. With these, its menu has *Show Advanced*. The new rendering has a button and needs none.
 */

/** @param {any} node @param {() => boolean} isAlwaysShown whether the user's settings show advanced inputs everywhere */
export function hideAdvanced(node, isAlwaysShown) {
  const advanced = (node.widgets ?? []).filter((/** @type {any} */ each) => each.options?.advanced);
  for (const widget of advanced) {
    const isClassic = () => !globalThis.LiteGraph?.vueNodesMode && !isAlwaysShown();
    Object.defineProperty(widget, "advanced", { configurable: true, get: isClassic, set() {} });
    Object.defineProperty(widget, "hidden", {
      configurable: true,
      get: () => isClassic() && !node.showAdvanced,
      set() {},
    });
  }
  if (advanced.length) node.setSize(node.computeSize());
}
