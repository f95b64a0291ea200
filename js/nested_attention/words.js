// @ts-check
/**
 * Tokens in the text of a prompt, read by the rules of `nested_core/prompt.py` and, for words that
 * nobody bound, `nested_core/diagnosis.py`. A test gives both the same prompts.
 */

// The last characters that it leaves out are white space to Python alone.
const BRACKETED = /<[^<>:\p{White_Space}\x1c-\x1f]{1,64}>/gu;
const LETTER = /[\p{L}\p{N}]/u;
const IN_WORD = "[\\p{L}\\p{N}_]";

/** @param {string} token */
const escaped = (token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** A token that begins or ends with a letter or digit is found as a whole word only. @param {string} token */
function bounded(token) {
  const letters = [...token]; // not halves of them, as `token[0]` may be
  const before = LETTER.test(letters[0]) ? `(?<!${IN_WORD})` : "";
  const after = LETTER.test(letters[letters.length - 1]) ? `(?!${IN_WORD})` : "";
  return before + escaped(token) + after;
}

/**
 * Which of the tokens a text says, and which bracketed words in it are none of them.
 * @param {string} text
 * @param {string[]} tokens
 */
export function readPrompt(text, tokens) {
  const composed = text.normalize("NFC");
  const given = new Map(tokens.filter(Boolean).map((token) => [token.normalize("NFC"), token]));
  const longestFirst = [...given.keys()].sort((a, b) => b.length - a.length);
  /** @type {Set<string>} */
  const said = new Set();
  let rest = composed;
  if (given.size) {
    const pattern = new RegExp(longestFirst.map(bounded).join("|"), "gu");
    for (const [token] of composed.matchAll(pattern)) said.add(given.get(token) ?? token);
    rest = composed.replace(pattern, " ");
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
