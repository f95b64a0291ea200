// @ts-check
/** Tokens in the text of a prompt. The nodes read the same text by the same rules. */

const BRACKETED = /<[^<>:\n]{1,100}>/gu;
const WORD = /[\p{L}\p{N}_]/u;

/** @param {string} token */
const escaped = (token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** A token that begins or ends with a letter or digit is found as a whole word only. @param {string} token */
function pattern(token) {
  const before = WORD.test(token[0]) ? "(?<![\\p{L}\\p{N}_])" : "";
  const after = WORD.test(token[token.length - 1]) ? "(?![\\p{L}\\p{N}_])" : "";
  return new RegExp(before + escaped(token) + after, "gu");
}

/**
 * Which of the tokens a text says, and which bracketed words in it are none of them.
 * @param {string} text
 * @param {string[]} tokens
 */
export function readPrompt(text, tokens) {
  /** @type {Set<string>} */
  const said = new Set();
  let rest = text.normalize("NFC");
  for (const token of [...tokens].sort((a, b) => b.length - a.length)) {
    if (!token) continue;
    const without = rest.replace(pattern(token.normalize("NFC")), " ");
    if (without !== rest) said.add(token);
    rest = without;
  }
  return { said, unknown: [...new Set(rest.match(BRACKETED) ?? [])] };
}

/**
 * The beginning of a token that stands before the caret: `<an` of `a photo of <an`.
 * @param {string} text
 * @param {number} caret
 */
export function begunToken(text, caret) {
  return /<[^<>\s]{0,100}$/u.exec(text.slice(0, caret))?.[0] ?? null;
}

/**
 * A text with a word put in at a place, spaces around it where they are needed.
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @param {string} word
 */
export function withWord(text, start, end, word) {
  const before = text.slice(0, start);
  const after = text.slice(end);
  const lead = before && !/[\s(\[]$/u.test(before) ? " " : "";
  const tail = after && !/^[\s,.;:!?)\]]/u.test(after) ? " " : "";
  return { text: before + lead + word + tail + after, caret: (before + lead + word).length };
}
