// @ts-check
/** Colours of this pack's sockets and links, as long as the user's palette gives them none. */

/** @type {Record<string, string>} */
const COLOURS = {
  NESTED_ATTENTION_ENCODER: "#7d6ba8",
  NESTED_ATTENTION_SUBJECT: "#d8a657",
  NESTED_ATTENTION_BINDING: "#e78a4e",
  NESTED_ATTENTION_RECORD: "#89b482",
};

/** Choosing a palette empties the colours of all types that it does not name, so this is asked again and again. @param {any} canvas */
export function keepColours(canvas) {
  const tables = [globalThis.LGraphCanvas?.link_type_colors, canvas?.default_connection_color_byType];
  const style = document.documentElement.style;
  for (const [type, colour] of Object.entries(COLOURS)) {
    for (const table of tables) if (table && !table[type]) table[type] = colour;
    const property = `--color-datatype-${type}`; // what the new rendering reads
    if (!style.getPropertyValue(property)) style.setProperty(property, colour);
  }
}
