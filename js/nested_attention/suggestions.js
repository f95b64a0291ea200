// @ts-check
/** The list of bound tokens that opens when `<` is typed into a prompt. */

import { picture } from "./row.js";
import { begunToken, withWord } from "./words.js";

/** @typedef {{token: string, image: string | null}} Offer */

/** Writes into a text field as typing does, so that every rendering of the page hears of it. @param {HTMLTextAreaElement} field @param {string} text @param {number} caret */
export function write(field, text, caret) {
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value")?.set?.call(field, text);
  field.dispatchEvent(new Event("input", { bubbles: true }));
  field.focus();
  field.setSelectionRange(caret, caret);
}

/** @param {(field: HTMLTextAreaElement) => Offer[]} offersFor the tokens that a text field may say */
export function offerTokens(offersFor) {
  /** @type {{field: HTMLTextAreaElement, list: HTMLElement, offers: Offer[], chosen: number} | null} */
  let open = null;

  function close() {
    open?.list.remove();
    open = null;
  }

  /** @param {Offer} offer */
  function take(offer) {
    if (!open) return;
    const { field } = open;
    const caret = field.selectionStart;
    const begun = begunToken(field.value, caret) ?? "";
    close();
    const written = withWord(field.value, caret - begun.length, caret, offer.token);
    write(field, written.text, written.caret);
  }

  function draw() {
    if (!open) return;
    const { list, offers, chosen } = open;
    list.replaceChildren(
      ...offers.map((offer, index) => {
        const line = document.createElement("div");
        line.setAttribute("role", "option");
        line.setAttribute("aria-selected", String(index === chosen));
        line.append(...picture(offer.image), offer.token);
        // Before the field loses its focus, which closes the list.
        line.addEventListener("pointerdown", (event) => {
          event.preventDefault();
          take(offer);
        });
        return line;
      }),
    );
  }

  /** @param {HTMLTextAreaElement} field */
  function update(field) {
    const begun = begunToken(field.value, field.selectionStart);
    const offers = begun === null ? [] : offersFor(field).filter(({ token }) => token.startsWith(begun) && token !== begun);
    close();
    if (!offers.length) return;
    const list = document.createElement("div");
    list.className = "nested-attention-list";
    list.setAttribute("role", "listbox");
    const box = field.getBoundingClientRect();
    list.style.left = `${box.left + 8}px`;
    list.style.top = `${Math.min(box.bottom + 2, window.innerHeight - 40)}px`;
    document.body.append(list);
    open = { field, list, offers, chosen: 0 };
    draw();
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (!open || event.target !== open.field) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) open.chosen = (open.chosen + step + open.offers.length) % open.offers.length;
    else if (event.key === "Enter" || event.key === "Tab") take(open.offers[open.chosen]);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  }

  document.addEventListener("input", ({ target }) => {
    if (target instanceof HTMLTextAreaElement) update(target);
  });
  document.addEventListener("keydown", onKey, true);
  document.addEventListener("focusout", ({ target }) => {
    if (target === open?.field) close();
  });
}
