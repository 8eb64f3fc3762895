// Charts of what this page has measured. A chart is a slider over its points, so that keys and screen readers reach each
// value.

const HISTORY_MS = 15 * 60000;
// Points that are further apart are not joined: the page was hidden in between.
const GAP_MS = 3 * WINDOW_MS;
const CHART_WIDTH = 300;
const CHART_HEIGHT = 72;
let measured = [];

// `least` is the smallest value at the top of the scale: an idle server is not to look busy.
const charts = [
  { name: "rate", series: ["rate"], format: perSecond, least: 1, dots: false },
  { name: "time", series: ["p50", "p99"], format: duration, least: 1e-4, dots: false },
  { name: "propagation", series: ["propagation"], format: duration, least: 1e-2, dots: true },
];

function chartElement(chart) {
  return $(`${chart.name}-chart`);
}

function addPath(chart, className) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
  node.setAttribute("class", className);
  chartElement(chart).append(node);
  return node;
}

// The next of 1, 2, 5, 10, …
function scaleTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999999);
}

function recordPoint(point) {
  measured = measured.filter((known) => point.at - known.at < HISTORY_MS);
  measured.push(point);
  charts.forEach(draw);
  // The charts are below the models until there is something to draw.
  if ((point.rate > 0 || !isMissing(point.propagation)) && $("charts").previousElementSibling === $("models-section")) {
    $("models-section").before($("charts"));
  }
}

function isMissing(value) {
  return value === null;
}

function pointX(point) {
  const last = measured.at(-1).at;
  return (CHART_WIDTH * (1 - (last - point.at) / HISTORY_MS)).toFixed(1);
}

// The path of one series. A point that is joined to none before it is drawn as a dot.
function seriesPath(chart, series, top) {
  let path = "";
  let before = null;
  for (const point of measured) {
    if (isMissing(point[series])) {
      before = null;
      continue;
    }
    const joined = !chart.dots && before !== null && point.at - before.at < GAP_MS;
    const y = (CHART_HEIGHT * (1 - point[series] / top)).toFixed(1);
    path += joined ? `L${pointX(point)} ${y}` : `M${pointX(point)} ${y}h0`;
    before = point;
  }
  return path;
}

function pointText(chart, point) {
  const named = (series) => (chart.series.length > 1 ? `${series} ` : "");
  return chart.series.map((series) => named(series) + chart.format(point[series])).join(", ");
}

function chartText(chart, selected, highest) {
  if (selected) {
    return `${pointText(chart, selected)} at ${new Date(selected.at).toLocaleTimeString("en-GB")}`;
  }
  const latest = measured.findLast((point) => chart.series.some((series) => !isMissing(point[series])));
  if (latest) {
    return `${pointText(chart, latest)}, highest ${chart.format(highest)}`;
  }
  return chart.dots ? "no change yet" : "…";
}

function describeToReaders(chart, selected, text) {
  const svg = chartElement(chart);
  const shown = measured.indexOf(selected || measured.at(-1));
  svg.setAttribute("aria-valuemax", Math.max(measured.length - 1, 0));
  svg.setAttribute("aria-valuenow", Math.max(shown, 0));
  svg.setAttribute("aria-valuetext", text);
}

function draw(chart) {
  const values = measured.flatMap((point) => chart.series.map((series) => point[series]));
  const highest = Math.max(...values.filter((value) => !isMissing(value)), 0);
  const top = scaleTop(Math.max(highest, chart.least));
  chart.series.forEach((series, number) => {
    chart.paths[number].setAttribute("d", seriesPath(chart, series, top));
  });
  const selected = measured.find((point) => point.at === chart.selected);
  chart.cursor.setAttribute("d", selected ? `M${pointX(selected)} 0V${CHART_HEIGHT}` : "");
  const text = chartText(chart, selected, highest);
  put(`${chart.name}-value`, text);
  put(`${chart.name}-top`, chart.format(top));
  describeToReaders(chart, selected, text);
}

function select(chart, point) {
  chart.selected = point ? point.at : null;
  draw(chart);
}

function selectUnderPointer(chart, event) {
  if (measured.length === 0) {
    return;
  }
  const box = chartElement(chart).getBoundingClientRect();
  const at = measured.at(-1).at - HISTORY_MS * (1 - (event.clientX - box.left) / box.width);
  const nearest = measured.reduce((a, b) => (Math.abs(a.at - at) <= Math.abs(b.at - at) ? a : b));
  select(chart, nearest);
}

function selectByKey(chart, event) {
  const last = measured.length - 1;
  const found = measured.findIndex((point) => point.at === chart.selected);
  const now = found < 0 ? last : found;
  const targets = {
    ArrowLeft: now - 1,
    ArrowDown: now - 1,
    ArrowRight: now + 1,
    ArrowUp: now + 1,
    PageUp: now + 30,
    PageDown: now - 30,
    Home: 0,
    End: last,
  };
  if (event.key === "Escape") {
    select(chart, null);
  } else if (event.key in targets && last >= 0) {
    event.preventDefault();
    select(chart, measured[Math.min(Math.max(targets[event.key], 0), last)]);
  }
}

function startChart(chart) {
  const svg = chartElement(chart);
  chart.paths = chart.series.map((series) => addPath(chart, chart.dots ? "dots" : series));
  chart.cursor = addPath(chart, "cursor");
  chart.selected = null;
  svg.addEventListener("pointermove", (event) => selectUnderPointer(chart, event));
  svg.addEventListener("pointerleave", () => select(chart, null));
  svg.addEventListener("blur", () => select(chart, null));
  svg.addEventListener("keydown", (event) => selectByKey(chart, event));
  draw(chart);
}
