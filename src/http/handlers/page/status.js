// The status of the catalog, read again every two seconds while the page is visible.

const FOLLOWING = {
  live: "live",
  polling: "polling",
  standby: "polling a hot standby",
  upstream: "following an upstream",
  stalled: "out of sync",
};
// Whether /readyz and /metrics are served on another address.
let separateOps = false;
let lastResponse = null;
let revision = null;

function showHealth(text, style) {
  $("health").className = `pill ${style}`;
  put("health", text);
}

function showNotice(text, style = "warn") {
  $("notice").hidden = !text;
  $("notice").className = style;
  put("notice", text);
}

function showSync(catalog, ready) {
  const source = catalog.source === "upstream" ? "the upstream" : "Postgres";
  const error = catalog.sync_error;
  if (catalog.source === "file") {
    put("sync", "not yet", "serving the snapshot file");
  } else {
    put("sync", age(catalog.synced_seconds_ago), error ? `cannot read ${source}` : FOLLOWING[catalog.follow]);
  }
  if (ready === "draining") {
    showHealth("Shutting down", "warn");
  } else if (catalog.source === "file") {
    showHealth("Serving the snapshot file", "warn");
  } else if (error) {
    showHealth(`Serving, cannot read ${source}`, "warn");
  } else {
    showHealth("Serving", "good");
  }
}

function rejectedNote(catalog) {
  if (catalog.rejected === 0) {
    return "None.";
  }
  const listed = catalog.rejected_rows.length;
  const first = catalog.rejected > listed ? `The first ${listed} of ${integer.format(catalog.rejected)}. ` : "";
  return `${first}Where there was a valid version before, it is still served.`;
}

function showRejected(catalog) {
  put("rejected", integer.format(catalog.rejected));
  $("rejected").className = catalog.rejected > 0 ? "alert" : "";
  put("rejected-note", rejectedNote(catalog));
  fillTable("rejected-rows", catalog.rejected_rows, (rejected) =>
    tableRow(
      isolated(rejected.id, "mono"),
      isolated(rejected.reason),
      rejected.served ? "last valid version" : "not served",
    ),
  );
}

// What to do if the catalog is empty.
function showAdvice(catalog) {
  $("advice").hidden = catalog.models > 0;
  $("advice-rejected").hidden = catalog.rejected === 0;
  $("advice-import").hidden = catalog.rejected > 0 || catalog.source === "upstream";
  $("advice-upstream").hidden = catalog.rejected > 0 || catalog.source !== "upstream";
}

function serverState(server) {
  if (server.in_sync) {
    return element("span", "in sync", "pill good");
  }
  return server.revision === null ? element("span", "starting", "pill") : element("span", "behind", "pill warn");
}

function showFleet(catalog) {
  const fleet = catalog.fleet || [];
  const all = "Connected to the same database as this one.";
  const count = `${fleet.length} of ${integer.format(catalog.replicas)}`;
  const first = `The first ${count}, those that are behind before the others.`;
  $("fleet").hidden = fleet.length === 0;
  put("fleet-note", catalog.replicas > fleet.length ? first : all);
  fillTable("fleet-rows", fleet, (server) =>
    tableRow(isolated(server.name, "mono"), element("code", server.revision || "–"), serverState(server)),
  );
}

function showUnknownIds(catalog) {
  const lookups = `${plural(catalog.not_found, "lookup")} of unknown ids since start. Ids that are still unknown:`;
  put("missing-note", catalog.not_found_ids.length > 0 ? lookups : "None.");
  fillTable("missing-ids", catalog.not_found_ids, (unknown) => {
    const node = tableRow(isolated(unknown.id, "mono"), integer.format(unknown.asked));
    node.lastChild.className = "number";
    return node;
  });
}

function showCatalog(catalog, ready) {
  put("models", integer.format(catalog.models));
  put("revision", catalog.revision);
  showSync(catalog, ready);
  showRejected(catalog);
  showAdvice(catalog);
  showFleet(catalog);
  showUnknownIds(catalog);
}

// Returns the status of /readyz; null if it is not served here.
async function refreshLive() {
  if (separateOps) {
    return null;
  }
  const response = await get("readyz");
  separateOps = response.status === 404;
  $("separate").hidden = !separateOps;
  for (const card of document.querySelectorAll(".live")) {
    card.hidden = separateOps;
  }
  if (separateOps) {
    return null;
  }
  const ready = (await response.json()).status;
  showLive(parseMetrics(await (await get("metrics")).text()));
  return ready;
}

async function refresh() {
  const ready = await refreshLive();
  const response = await get("api/catalog");
  lastResponse = new Date();
  document.body.classList.remove("stale");
  if (response.status === 503) {
    if (ready === "loading" || revision === null) {
      showHealth("Loading", "warn");
    }
    showNotice(`${(await response.json()).error} (retrying)`);
    return;
  }
  if (response.status === 429) {
    showNotice("The rate limit for this client address is exceeded; retrying.");
    return;
  }
  if (!response.ok) {
    throw new Error(`the server responded with status ${response.status}`);
  }
  const catalog = await response.json();
  showNotice(catalog.sync_error ? `Changes are not received: ${catalog.sync_error} (retrying)` : "");
  showCatalog(catalog, ready);
  if (catalog.revision !== revision) {
    revision = catalog.revision;
    loadList(true);
    if ($("details").open) {
      showDetails(shownId);
    }
  }
}

function showUnreachable() {
  const since = lastResponse && lastResponse.toLocaleTimeString("en-GB");
  document.body.classList.add("stale");
  showHealth("Not responding", "bad");
  showNotice(
    since
      ? `The server has not responded since ${since}. The data shown is from that time; retrying.`
      : "The server has not responded; retrying.",
    "bad",
  );
}

async function tick() {
  if (!document.hidden) {
    await refresh().catch(showUnreachable);
  }
  setTimeout(tick, INTERVAL_MS);
}
