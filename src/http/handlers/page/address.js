// The search text and the model that is shown are in the address (?q=flux#flux-dev), so that they can be shared, and Back
// returns to what was shown before.

// State of an entry in the history that typing in the search field has made, and that further typing replaces.
const TYPED = "typed";

function modelInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

function searchInAddress() {
  return new URLSearchParams(location.search).get("q") || "";
}

function modelAddress(id) {
  return `#${encodeURIComponent(id)}`;
}

function addressWithoutModel(text) {
  return location.pathname + (text ? `?${new URLSearchParams({ q: text })}` : "");
}

function putSearchInAddress(text) {
  if (text === searchInAddress()) {
    return;
  }
  if (history.state === TYPED) {
    history.replaceState(TYPED, "", addressWithoutModel(text));
  } else {
    history.pushState(TYPED, "", addressWithoutModel(text));
  }
}

function showAddress() {
  const text = searchInAddress();
  if (text !== $("search").value.trim()) {
    $("search").value = text;
    showFirstPage();
  }
  const id = modelInAddress();
  if (id === null) {
    shownId = null;
    $("details").close();
  } else if (id !== shownId) {
    showDetails(id);
  }
}

// The dialog was closed by its button, by Escape, or by an address without a model.
function onDetailsClosed() {
  if ($("details").open) {
    // It was opened again before this event.
    return;
  }
  shownId = null;
  if (modelInAddress() !== null) {
    history.pushState(null, "", addressWithoutModel(searchInAddress()));
  }
}

function listenToAddress() {
  $("details").addEventListener("close", onDetailsClosed);
  addEventListener("popstate", showAddress);
  addEventListener("hashchange", showAddress);
  showAddress();
}
