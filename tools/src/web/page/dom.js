// SPDX-License-Identifier: Apache-2.0
// Makes elements. Whatever is shown becomes text or an attribute: there is no way to HTML here.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.filter((one) => one !== null && one !== undefined));
  return element;
}

/** Return an element of HTML; children are elements or texts. */
export function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an element of SVG. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Give an element other children; null and undefined are none. */
export function refill(element, ...children) {
  element.replaceChildren(...children.filter((one) => one !== null && one !== undefined));
}

/** Set attributes of an element that is there. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

/** Set a text, if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);
