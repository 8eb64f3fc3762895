// One model, in a dialog.

let shownId = null;

// Credentials, query and fragment of a URL may contain a token, so they are not shown.
function urlElement(text) {
  const node = element("span");
  if (!URL.canParse(text)) {
    node.append("not shown: not a valid URL");
    return node;
  }
  const url = new URL(text);
  const bare = `${url.protocol}//${url.host}${url.pathname}`;
  const hasSecret = Boolean(url.username || url.password || url.search || url.hash);
  if (!hasSecret && ["https:", "http:"].includes(url.protocol)) {
    const link = element("a", bare);
    link.href = bare;
    link.rel = "noopener noreferrer";
    link.target = "_blank";
    node.append(link);
    return node;
  }
  node.append(isolated(bare));
  if (hasSecret) {
    node.append(element("small", " (query and credentials are not shown)", "soft"));
  }
  return node;
}

function plainText(value) {
  switch (value) {
    case null:
      return "–";
    case true:
      return "yes";
    case false:
      return "no";
    default:
      return String(value);
  }
}

// The elements that show the value of a field.
function fieldValues(key, value) {
  if (key === "download_url") {
    return [urlElement(value)];
  }
  if (key === "mirrors") {
    return value.map(urlElement);
  }
  if (Array.isArray(value)) {
    return value.map(modelLink);
  }
  return [isolated(plainText(value))];
}

function fieldElements([key, value]) {
  const node = element("dd");
  for (const part of fieldValues(key, value)) {
    node.append(part, " ");
  }
  if (node.childNodes.length === 0) {
    node.append("none");
  }
  return [element("dt", key.replaceAll("_", " ")), node];
}

function openDialog() {
  if (!$("details").open) {
    $("fields").replaceChildren();
    $("details-note").textContent = "Loading…";
    $("details").showModal();
  }
}

function showModel(response, model) {
  const fields = response.ok ? Object.entries(model).flatMap(fieldElements) : [];
  $("fields").replaceChildren(...fields);
  const problem = response.status === 404 ? "Model not found." : model.error;
  $("details-note").textContent = response.ok ? "" : problem;
}

async function showDetails(id) {
  const path = `api/models/${encodeURIComponent(id)}`;
  shownId = id;
  $("details-title").replaceChildren(isolated(id, "mono"));
  $("json").href = path;
  openDialog();
  try {
    const response = await get(path);
    const model = await response.json();
    if (shownId === id) {
      showModel(response, model);
    }
  } catch (error) {
    if (shownId === id) {
      $("details-note").textContent = `The server is not responding: ${error.message}`;
    }
  }
}
