"use strict";
// Text from rows is untrusted: it is only ever inserted as text, never as HTML or as a URL that a script could run from.
const $ = (id) => document.getElementById(id);
const INTERVAL_MS = 2000, WINDOW_MS = 15000, PAGE_SIZE = 25;
const API_ROUTES = ["/api/models/{id}", "/api/models/batch"];

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}
// <bdi> keeps characters that change the text direction from affecting the text around them.
function isolated(text, className) { return element("bdi", text, className); }
function put(id, text, note) {
  const node = $(id), key = text + "\n" + (note || "");
  if (node.shown === key) return;
  node.shown = key;
  node.textContent = text;
  if (note) node.append(element("small", note));
}
const integer = new Intl.NumberFormat("en");
function age(value) {
  if (value < 1) return "now";
  if (value < 120) return Math.round(value) + " s ago";
  return value < 7200 ? Math.round(value / 60) + " min ago" : Math.round(value / 3600) + " h ago";
}
function duration(value) {
  if (value === null) return "–";
  return value < 1e-3 ? Math.round(value * 1e6) + " µs" : value < 1 ? (value * 1e3).toPrecision(2) + " ms" : value.toPrecision(2) + " s";
}
function get(path) { return fetch(path, { signal: AbortSignal.timeout(8000), cache: "no-cache" }); }

// Live metrics, from the text that Prometheus scrapes.
let samples = [];
function parse(text) {
  const sample = { at: performance.now(), requests: 0, buckets: new Map(), propagation: new Map(), connections: 0, listener: null, version: "" };
  for (const line of text.split("\n")) {
    const parts = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const [, name, labels = "", value] = parts;
    const label = (key) => (new RegExp("(?:^|,)" + key + '="([^"]*)"').exec(labels) || [])[1];
    if (name === "catalog_http_requests_total" && API_ROUTES.includes(label("route"))) sample.requests += Number(value);
    const bound = label("le") === "+Inf" ? Infinity : Number(label("le"));
    if (name === "catalog_http_request_duration_seconds_bucket" && API_ROUTES.includes(label("route"))) {
      sample.buckets.set(bound, (sample.buckets.get(bound) || 0) + Number(value));
    }
    if (name === "catalog_propagation_seconds_bucket") sample.propagation.set(bound, Number(value));
    if (name === "catalog_http_connections") sample.connections = Number(value);
    if (name === "catalog_listener_connected") sample.listener = Number(value);
    if (name === "catalog_build_info") sample.version = label("version") || "";
  }
  return sample;
}
function quantile(from, to, share) {
  const bounds = [...to.keys()].sort((a, b) => a - b);
  const count = (bound) => to.get(bound) - (from.get(bound) || 0);
  const all = bounds.length ? count(bounds[bounds.length - 1]) : 0;
  if (!all) return null;
  let below = 0, lower = 0;
  for (const bound of bounds) {
    if (count(bound) >= share * all) {
      if (bound === Infinity) return lower;
      return lower + (bound - lower) * (share * all - below) / (count(bound) - below);
    }
    below = count(bound);
    lower = bound;
  }
  return lower;
}
function showLive(sample) {
  if (samples.length && samples[samples.length - 1].requests > sample.requests) samples = [];
  const before = samples[samples.length - 1] || sample;
  samples.push(sample);
  while (samples.length > 2 && sample.at - samples[0].at > WINDOW_MS) samples.shift();
  const first = samples[0], time = (sample.at - first.at) / 1000;
  const rate = samples.length < 2 ? null : (sample.requests - first.requests) / time;
  const p50 = quantile(first.buckets, sample.buckets, .5), p99 = quantile(first.buckets, sample.buckets, .99);
  put("rate", rate === null ? "…" : perSecond(rate), integer.format(sample.requests) + " since start");
  put("p50", duration(p50));
  put("p99", duration(p99), "over the last " + WINDOW_MS / 1000 + " s");
  recordPoint({ at: Date.now(), rate, p50, p99, propagation: quantile(before.propagation, sample.propagation, .99) });
  put("connections", integer.format(sample.connections));
  $("version").textContent = sample.version && "version " + sample.version;
}

// Catalog status.
let separateOps = false, lastResponse = null, revision = null;
function health(text, style) { $("health").className = "pill " + style; if ($("health").textContent !== text) $("health").textContent = text; }
function notice(text, style) { $("notice").hidden = !text; $("notice").className = style || "warn"; if ($("notice").textContent !== text) $("notice").textContent = text; }
function fill(body, items, row) {
  $(body).replaceChildren(...items.map(row));
  $(body).parentElement.hidden = !items.length;
}
function row(...cells) { const node = element("tr"); node.append(...cells.map((cell) => { const td = element("td"); td.append(cell); return td; })); return node; }
function showCatalog(catalog, ready, listener) {
  const modes = { live: "live", polling: "polling", standby: "polling a hot standby", upstream: "following an upstream", stalled: "out of sync" };
  put("models", integer.format(catalog.models));
  put("rejected", integer.format(catalog.rejected));
  $("rejected").className = catalog.rejected ? "alert" : "";
  const disconnected = listener === 0 && catalog.follow === "live";
  if (catalog.source === "file") put("sync", "not yet", "serving the snapshot file");
  else put("sync", age(catalog.synced_seconds_ago), disconnected ? "no connection to Postgres" : modes[catalog.follow] || "");
  if (ready === "draining") health("Shutting down", "warn");
  else if (catalog.source === "file" || disconnected) health(disconnected ? "Serving, no connection to Postgres" : "Serving the snapshot file", "warn");
  else health("Serving", "good");
  put("revision", catalog.revision);
  put("rejected-note", !catalog.rejected ? "None." : catalog.rejected > catalog.rejected_rows.length ? "The first " + catalog.rejected_rows.length + " of " + integer.format(catalog.rejected) + ". The last valid version of each is still served." : "The last valid version of each is still served.");
  fill("rejected-rows", catalog.rejected_rows, (one) => row(isolated(one.id, "mono"), isolated(one.reason)));
  const fleet = catalog.fleet || [], state = (one) => one.in_sync ? ["in sync", "good"] : one.revision === null ? ["starting", ""] : ["behind", "warn"];
  $("fleet").hidden = !fleet.length;
  put("fleet-note", catalog.replicas > fleet.length ? "The first " + fleet.length + " of " + integer.format(catalog.replicas) + ", those that are behind before the others." : "Connected to the same database as this one.");
  fill("fleet-rows", fleet, (one) => row(isolated(one.name, "mono"), element("code", one.revision || "–"), element("span", state(one)[0], "pill " + state(one)[1])));
  put("missing-note", catalog.not_found_ids.length ? integer.format(catalog.not_found) + (catalog.not_found === 1 ? " lookup" : " lookups") + " of unknown ids since start. Ids that are still unknown:" : "None.");
  fill("missing-ids", catalog.not_found_ids, (one) => { const node = row(isolated(one.id, "mono"), integer.format(one.asked)); node.lastChild.className = "number"; return node; });
}
async function refresh() {
  let listener = null, ready = null;
  if (!separateOps) {
    const response = await get("readyz");
    if (response.status === 404) separateOps = true;
    else {
      ready = (await response.json()).status;
      const sample = parse(await (await get("metrics")).text());
      listener = sample.listener;
      showLive(sample);
    }
    $("separate").hidden = !separateOps;
    document.querySelectorAll(".live").forEach((card) => { card.hidden = separateOps; });
  }
  const response = ready === "loading" ? null : await get("api/catalog");
  lastResponse = new Date();
  document.body.classList.remove("stale");
  if (!response || response.status === 503) {
    health("Loading", "warn");
    return notice("No catalog is loaded yet: the server is waiting for its source.");
  }
  if (response.status === 429) return notice("The rate limit for this client address is exceeded; retrying.");
  if (!response.ok) throw new Error("the server responded with status " + response.status);
  const catalog = await response.json();
  notice("");
  showCatalog(catalog, ready, listener);
  if (catalog.revision !== revision) {
    revision = catalog.revision;
    list(true);
    if ($("details").open) details(shown);
  }
}
async function tick() {
  if (!document.hidden) {
    try { await refresh(); } catch (error) {
      document.body.classList.add("stale");
      health("Not responding", "bad");
      const since = lastResponse ? " since " + lastResponse.toLocaleTimeString("en-GB") + ". The data shown is from that time" : "";
      notice("The server has not responded" + since + "; retrying.", "bad");
    }
  }
  setTimeout(tick, INTERVAL_MS);
}

// The list, paged by the last id seen. `pages` has the start of each page up to this one.
let pages = [""], next = null, latest = 0, rendered = new Map();
async function list(highlight) {
  const mine = ++latest, text = $("search").value.trim();
  const path = "api/models?" + new URLSearchParams({ q: text, after: pages[pages.length - 1], limit: PAGE_SIZE });
  try {
    const response = await get(path);
    const body = await response.json();
    if (mine !== latest) return;
    if (response.status === 429 || response.status === 503) return void setTimeout(() => mine === latest && list(highlight), 1000);
    if (!response.ok) throw new Error(body.error);
    // All models of this page may have been deleted.
    if (!body.models.length && pages.length > 1) { pages.pop(); return void list(highlight); }
    next = body.next;
    showList(body.models, text, highlight);
  } catch (error) {
    if (mine === latest) $("found").textContent = "Cannot load the list: " + error.message;
    if (mine === latest) revision = null;
  }
}
function showList(models, text, highlight) {
  const before = rendered, focused = document.activeElement && document.activeElement.model;
  rendered = new Map(models.map((model) => [model.id, JSON.stringify(model)]));
  $("rows").replaceChildren(...models.map((model) => {
    const open = element("button", undefined, "link mono");
    open.type = "button";
    open.model = model.id;
    open.append(isolated(model.id));
    open.addEventListener("click", () => details(model.id));
    const node = row(open, isolated(model.name), isolated(model.save_path, "mono"), model.file_size_gb === null ? "–" : model.file_size_gb + " GB");
    node.children[1].className = node.children[2].className = "less";
    node.children[3].className = "number";
    if (highlight && before.size && before.get(model.id) !== rendered.get(model.id)) node.className = "changed";
    return node;
  }));
  if (focused) [...$("rows").querySelectorAll("button")].find((button) => button.model === focused)?.focus();
  const number = pages.length > 1 ? ", page " + pages.length : "";
  $("found").textContent = models.length ? models.length + (models.length === 1 ? " model" : " models") + (text ? " matching “" + text + "”" : "") + number + (next === null ? "" : ", more follow")
    : text ? "No id or name contains “" + text + "”." : "The catalog is empty.";
  $("previous").disabled = pages.length < 2;
  $("next").disabled = next === null;
}
function first() { pages = [""]; list(false); }
let typing;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(first, 200); });
document.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); first(); });
$("previous").addEventListener("click", () => { pages.pop(); list(false); });
$("next").addEventListener("click", () => { if (next !== null) { pages.push(next); list(false); } });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !$("details").open && document.activeElement !== $("search")) { event.preventDefault(); $("search").focus(); }
});

// One model. Credentials, query and fragment of a URL may contain a token, so they are not shown.
let shown = null;
function urlElement(text) {
  const node = element("span");
  let url;
  try { url = new URL(text); } catch { node.append("not shown: not a valid URL"); return node; }
  const bare = url.protocol + "//" + url.host + url.pathname;
  const secret = url.username || url.password || url.search || url.hash;
  if (!secret && (url.protocol === "https:" || url.protocol === "http:")) {
    const link = element("a", bare);
    link.href = bare;
    link.rel = "noopener noreferrer";
    link.target = "_blank";
    node.append(link);
  } else node.append(isolated(bare), ...(secret ? [element("small", " (query and credentials are not shown)", "soft")] : []));
  return node;
}
async function details(id) {
  shown = id;
  $("details-title").replaceChildren(isolated(id, "mono"));
  $("json").href = "api/models/" + encodeURIComponent(id);
  if (!$("details").open) { $("fields").replaceChildren(); $("details-note").textContent = "Loading…"; $("details").showModal(); }
  try {
    const response = await get("api/models/" + encodeURIComponent(id));
    const model = await response.json();
    if (shown !== id) return;
    $("fields").replaceChildren();
    $("details-note").textContent = response.status === 404 ? "Model not found." : response.ok ? "" : model.error;
    if (!response.ok) return;
    for (const [key, value] of Object.entries(model)) {
      const node = element("dd");
      if (key === "download_url") node.append(urlElement(value));
      else if (key === "mirrors") value.forEach((url) => node.append(urlElement(url), " "));
      else if (Array.isArray(value)) value.forEach((other) => {
        const open = element("button", undefined, "link mono");
        open.type = "button";
        open.append(isolated(other));
        open.addEventListener("click", () => details(other));
        node.append(open, " ");
      });
      else node.append(isolated(value === null ? "–" : value === true ? "yes" : value === false ? "no" : String(value)));
      if (!node.childNodes.length) node.append("none");
      $("fields").append(element("dt", key.replaceAll("_", " ")), node);
    }
  } catch (error) { if (shown === id) $("details-note").textContent = "The server is not responding: " + error.message; }
}
$("close").addEventListener("click", () => $("details").close());
