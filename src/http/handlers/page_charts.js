// Charts of what this page has measured. A chart is a slider over its points, so keys and screen readers reach each value.
const HISTORY_MS = 15 * 60000, GAP_MS = 3 * WINDOW_MS, CHART_WIDTH = 300, CHART_HEIGHT = 72;
let measured = [];
const perSecond = (value) => value === null ? "–" : integer.format(Math.round(value * 10) / 10) + " /s";
// `least` is the smallest value at the top of the scale: an idle server is not to look busy.
const charts = [
  { name: "rate", series: ["rate"], format: perSecond, least: 1 },
  { name: "time", series: ["p50", "p99"], format: duration, least: 1e-4 },
  { name: "propagation", series: ["propagation"], format: duration, least: 1e-2, dots: true },
].map((chart) => {
  const path = (className) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
    node.setAttribute("class", className);
    $(chart.name + "-chart").append(node);
    return node;
  };
  chart.paths = chart.series.map((series) => path(chart.dots ? "dots" : series));
  chart.cursor = path("cursor");
  chart.selected = null;
  return chart;
});
// The next of 1, 2, 5, 10, …
function scaleTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999999);
}
function recordPoint(point) {
  measured = measured.filter((known) => point.at - known.at < HISTORY_MS);
  measured.push(point);
  charts.forEach(draw);
}
function draw(chart) {
  const values = measured.flatMap((point) => chart.series.map((series) => point[series])).filter((value) => value !== null);
  const highest = Math.max(...values, 0), top = scaleTop(Math.max(highest, chart.least));
  const last = measured.length ? measured[measured.length - 1].at : 0;
  const x = (point) => (CHART_WIDTH * (1 - (last - point.at) / HISTORY_MS)).toFixed(1);
  chart.series.forEach((series, number) => {
    let path = "", before = null;
    for (const point of measured) {
      if (point[series] === null) { before = null; continue; }
      const joined = !chart.dots && before && point.at - before.at < GAP_MS;
      path += (joined ? "L" : "M") + x(point) + " " + (CHART_HEIGHT * (1 - point[series] / top)).toFixed(1) + (joined ? "" : "h0");
      before = point;
    }
    chart.paths[number].setAttribute("d", path);
  });
  const selected = measured.find((point) => point.at === chart.selected);
  chart.cursor.setAttribute("d", selected ? "M" + x(selected) + " 0V" + CHART_HEIGHT : "");
  const of = (point) => chart.series.map((series) => (chart.series.length > 1 ? series + " " : "") + chart.format(point[series])).join(", ");
  const latest = measured.findLast((point) => chart.series.some((series) => point[series] !== null));
  const text = selected ? of(selected) + " at " + new Date(selected.at).toLocaleTimeString("en-GB")
    : !latest ? (chart.dots ? "no change yet" : "…") : of(latest) + ", highest " + chart.format(highest);
  put(chart.name + "-value", text);
  put(chart.name + "-top", chart.format(top));
  const svg = $(chart.name + "-chart");
  svg.setAttribute("aria-valuemax", Math.max(measured.length - 1, 0));
  svg.setAttribute("aria-valuenow", Math.max(measured.indexOf(selected || measured[measured.length - 1]), 0));
  svg.setAttribute("aria-valuetext", text);
}
function select(chart, point) { chart.selected = point ? point.at : null; draw(chart); }
for (const chart of charts) {
  const svg = $(chart.name + "-chart");
  const reset = () => select(chart, null);
  svg.addEventListener("pointermove", (event) => {
    if (!measured.length) return;
    const box = svg.getBoundingClientRect(), last = measured[measured.length - 1].at;
    const at = last - HISTORY_MS * (1 - (event.clientX - box.left) / box.width);
    select(chart, measured.reduce((a, b) => Math.abs(a.at - at) <= Math.abs(b.at - at) ? a : b));
  });
  svg.addEventListener("pointerleave", reset);
  svg.addEventListener("blur", reset);
  svg.addEventListener("keydown", (event) => {
    const last = measured.length - 1, found = measured.findIndex((point) => point.at === chart.selected);
    const now = found < 0 ? last : found;
    const steps = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageUp: now + 30, PageDown: now - 30, Home: 0, End: last };
    if (event.key === "Escape") reset();
    else if (event.key in steps && last >= 0) {
      event.preventDefault();
      select(chart, measured[Math.min(Math.max(steps[event.key], 0), last)]);
    }
  });
  draw(chart);
}
