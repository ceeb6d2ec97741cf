"use strict";
// The data of the page, the places where it is shown, and how elements are made. The files of this folder are joined in
// the order that render.py gives: elements, network, arrows, panel, overview, keys.

const page = JSON.parse(document.getElementById("document").textContent);
const tree = document.getElementById("tree");
const panel = document.getElementById("panel");
const boxes = new Map(); // id -> {box, element, parent}
const graphs = []; // {element, svg, graph}, drawn again whenever sizes change
let selected = null;

/** Makes an element: make("p", {class: "muted"}, "text", child). Attributes that are null are left out. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an SVG element. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
