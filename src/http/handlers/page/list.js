// The list of models, paged by the last id of each page.

const PAGE_SIZE = 25;
// The id after which each page begins, up to the page that is shown.
let pageStarts = [""];
let nextStart = null;
// Models on all pages.
let total = 0;
// Identifies the latest request: the response to an earlier one is ignored.
let latestRequest = 0;
// What is shown, as JSON by id.
let shownModels = new Map();

async function loadList(highlight) {
  latestRequest += 1;
  const request = latestRequest;
  const text = $("search").value.trim();
  const query = new URLSearchParams({ q: text, after: pageStarts.at(-1), limit: PAGE_SIZE });
  try {
    const response = await get(`api/models?${query}`);
    const body = await response.json();
    if (request === latestRequest) {
      receiveList(response, body, text, highlight);
    }
  } catch (error) {
    if (request === latestRequest) {
      $("found").textContent = `Cannot load the list: ${error.message}`;
      // The next status loads it again.
      revision = null;
    }
  }
}

function receiveList(response, body, text, highlight) {
  const request = latestRequest;
  if (response.status === 429 || response.status === 503) {
    setTimeout(() => request === latestRequest && loadList(highlight), 1000);
    return;
  }
  if (!response.ok) {
    throw new Error(body.error);
  }
  if (body.models.length === 0 && pageStarts.length > 1) {
    // All models of this page have been deleted.
    pageStarts.pop();
    loadList(highlight);
    return;
  }
  nextStart = body.next;
  total = body.total;
  showList(body.models, text, highlight);
}

function listRow(model) {
  const size = model.file_size_gb === null ? "–" : `${model.file_size_gb} GB`;
  const node = tableRow(modelLink(model.id), isolated(model.name), isolated(model.save_path, "mono"), size);
  node.children[1].className = "less";
  node.children[2].className = "less";
  node.children[3].className = "number";
  return node;
}

function summary(text) {
  if (total === 0) {
    return text ? `No id or name contains “${text}”.` : "The catalog is empty.";
  }
  const matching = text ? ` matching “${text}”` : "";
  const pages = Math.ceil(total / PAGE_SIZE);
  return plural(total, "model") + matching + (pages > 1 ? `, page ${pageStarts.length} of ${integer.format(pages)}` : "");
}

function showList(models, text, highlight) {
  const before = shownModels;
  const focused = document.activeElement?.model;
  shownModels = new Map(models.map((model) => [model.id, JSON.stringify(model)]));
  const rows = models.map((model) => {
    const node = listRow(model);
    if (highlight && before.size > 0 && before.get(model.id) !== shownModels.get(model.id)) {
      node.className = "changed";
    }
    return node;
  });
  $("rows").replaceChildren(...rows);
  if (focused) {
    [...$("rows").querySelectorAll("a")].find((link) => link.model === focused)?.focus();
  }
  $("found").textContent = summary(text);
  $("previous").disabled = pageStarts.length < 2;
  $("next").disabled = nextStart === null;
}

function showFirstPage() {
  pageStarts = [""];
  loadList(false);
}

function showPreviousPage() {
  pageStarts.pop();
  loadList(false);
}

function showNextPage() {
  if (nextStart !== null) {
    pageStarts.push(nextStart);
    loadList(false);
  }
}

function search() {
  putSearchInAddress($("search").value.trim());
  showFirstPage();
}

function listenToList() {
  let typing = null;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, 200);
  });
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    search();
  });
  $("previous").addEventListener("click", showPreviousPage);
  $("next").addEventListener("click", showNextPage);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !$("details").open && document.activeElement !== $("search")) {
      event.preventDefault();
      $("search").focus();
    }
  });
}
