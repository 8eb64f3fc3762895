// Live metrics, from the text that Prometheus scrapes.

const WINDOW_MS = 15000;
const API_ROUTES = new Set(["/api/models/{id}", "/api/models/batch"]);
// The samples of the last WINDOW_MS.
let samples = [];

function emptySample() {
  return {
    at: performance.now(),
    requests: 0,
    buckets: new Map(),
    propagation: new Map(),
    connections: 0,
    version: "",
  };
}

function readLine(sample, line) {
  const parts = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
  if (!parts) {
    return;
  }
  const [, name, labels = "", text] = parts;
  const value = Number(text);
  const label = (key) => new RegExp(`(?:^|,)${key}="([^"]*)"`).exec(labels)?.[1];
  const bound = label("le") === "+Inf" ? Infinity : Number(label("le"));
  const ofApi = API_ROUTES.has(label("route"));
  switch (name) {
    case "catalog_http_requests_total":
      sample.requests += ofApi ? value : 0;
      break;
    case "catalog_http_request_duration_seconds_bucket":
      if (ofApi) {
        sample.buckets.set(bound, (sample.buckets.get(bound) || 0) + value);
      }
      break;
    case "catalog_propagation_seconds_bucket":
      sample.propagation.set(bound, value);
      break;
    case "catalog_http_connections":
      sample.connections = value;
      break;
    case "catalog_build_info":
      sample.version = label("version") || "";
      break;
  }
}

function parseMetrics(text) {
  const sample = emptySample();
  for (const line of text.split("\n")) {
    readLine(sample, line);
  }
  return sample;
}

// The value below which `share` of what was counted between two samples lies, interpolated within its bucket as
// Prometheus does; null if nothing was counted.
function quantile(from, to, share) {
  const bounds = [...to.keys()].toSorted((a, b) => a - b);
  const count = (bound) => to.get(bound) - (from.get(bound) || 0);
  const wanted = bounds.length > 0 ? share * count(bounds.at(-1)) : 0;
  if (wanted === 0) {
    return null;
  }
  let below = 0;
  let lower = 0;
  for (const bound of bounds) {
    if (count(bound) >= wanted) {
      return bound === Infinity ? lower : lower + ((bound - lower) * (wanted - below)) / (count(bound) - below);
    }
    below = count(bound);
    lower = bound;
  }
  return lower;
}

// Adds a sample and returns the first one of the window and the one before. Counters that went back are those of a
// restarted server.
function addSample(sample) {
  if (samples.length > 0 && samples.at(-1).requests > sample.requests) {
    samples = [];
  }
  const before = samples.at(-1) || sample;
  samples.push(sample);
  while (samples.length > 2 && sample.at - samples[0].at > WINDOW_MS) {
    samples.shift();
  }
  return [samples[0], before];
}

function showLive(sample) {
  const [first, before] = addSample(sample);
  const seconds = (sample.at - first.at) / 1000;
  const rate = samples.length < 2 ? null : (sample.requests - first.requests) / seconds;
  const p50 = quantile(first.buckets, sample.buckets, 0.5);
  const p99 = quantile(first.buckets, sample.buckets, 0.99);
  put("rate", rate === null ? "…" : perSecond(rate), `${integer.format(sample.requests)} since start`);
  put("p50", duration(p50));
  put("p99", duration(p99), `over the last ${WINDOW_MS / 1000} s`);
  put("connections", integer.format(sample.connections));
  $("version").textContent = sample.version && `version ${sample.version}`;
  const propagation = quantile(before.propagation, sample.propagation, 0.99);
  recordPoint({ at: Date.now(), rate, p50, p99, propagation });
}
