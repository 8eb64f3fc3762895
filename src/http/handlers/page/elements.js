"use strict";
// Elements of the page, and numbers as people read them.
//
// Text from rows is untrusted: it is only ever inserted as text, never as HTML or as a URL that a script could run
// from.

const INTERVAL_MS = 2000;
const integer = new Intl.NumberFormat("en");

function $(id) {
  return document.getElementById(id);
}

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) {
    node.textContent = text;
  }
  if (className) {
    node.className = className;
  }
  return node;
}

// <bdi> keeps characters that change the text direction from affecting the text around them.
function isolated(text, className) {
  return element("bdi", text, className);
}

// A link that shows the details of a model.
function modelLink(id) {
  const link = element("a", undefined, "mono");
  link.href = modelAddress(id);
  link.model = id;
  link.append(isolated(id));
  return link;
}

function tableRow(...cells) {
  const node = element("tr");
  for (const cell of cells) {
    const td = element("td");
    td.append(cell);
    node.append(td);
  }
  return node;
}

// Replaces the rows of a table, which is hidden while it is empty.
function fillTable(body, items, rowOf) {
  $(body).replaceChildren(...items.map(rowOf));
  $(body).parentElement.hidden = items.length === 0;
}

// Changes the text of an element only if it differs: screen readers announce every change.
function put(id, text, note = "") {
  const node = $(id);
  const key = `${text}\n${note}`;
  if (node.shown === key) {
    return;
  }
  node.shown = key;
  node.textContent = text;
  if (note) {
    node.append(element("small", note));
  }
}

function plural(count, noun) {
  return `${integer.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function age(seconds) {
  if (seconds < 1) {
    return "now";
  }
  if (seconds < 120) {
    return `${Math.round(seconds)} s ago`;
  }
  if (seconds < 7200) {
    return `${Math.round(seconds / 60)} min ago`;
  }
  return `${Math.round(seconds / 3600)} h ago`;
}

function duration(seconds) {
  if (seconds === null) {
    return "–";
  }
  if (seconds < 1e-3) {
    return `${Math.round(seconds * 1e6)} µs`;
  }
  if (seconds < 1) {
    return `${(seconds * 1e3).toPrecision(2)} ms`;
  }
  return `${seconds.toPrecision(2)} s`;
}

function perSecond(rate) {
  return rate === null ? "–" : `${integer.format(Math.round(rate * 10) / 10)} /s`;
}

function get(path) {
  return fetch(path, { signal: AbortSignal.timeout(8000), cache: "no-cache" });
}
