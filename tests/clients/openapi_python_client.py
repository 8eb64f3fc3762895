"""openapi-python-client."""

from model_catalog_client import Client
from model_catalog_client.api.catalog import get_catalog, get_snapshot
from model_catalog_client.api.models import get_model, list_models, look_up_models
from model_catalog_client.api.operations import get_metrics, get_readiness
from model_catalog_client.models import BatchRequest, BatchResponse, Catalog, Model, ModelNotFound, ModelPage, Readiness

catalog = Client(base_url="http://127.0.0.1:3000")
found = look_up_models.sync(client=catalog, body=BatchRequest(model_ids=["clip-l"]))
assert isinstance(found, BatchResponse), found
for model in found.models:
    print(model.id, model.download_url, model.mirrors or [])

assert ([model.id for model in found.models], found.not_found) == (["clip-l"], [])
single = get_model.sync(client=catalog, id="clip-l")
assert isinstance(single, Model) and single.file_size_gb == 0.25, single
missing = get_model.sync(client=catalog, id="a/b")
assert isinstance(missing, ModelNotFound) and missing.model_id == "a/b", missing
request = BatchRequest(model_ids=["ltxv-13b-098-fp8"], resolve_dependencies=True)
resolved = look_up_models.sync(client=catalog, body=request)
assert isinstance(resolved, BatchResponse) and resolved.missing_dependencies == [], resolved
page = list_models.sync(client=catalog, q="vae", limit=1)
assert isinstance(page, ModelPage) and page.next_ == "flux-vae", page
state = get_catalog.sync(client=catalog)
assert isinstance(state, Catalog) and state.source == "postgres", state
ready = get_readiness.sync(client=catalog)
assert isinstance(ready, Readiness) and ready.status == "ready", ready
metrics = get_metrics.sync(client=catalog)
assert isinstance(metrics, str) and metrics.startswith("# HELP "), metrics
# A property of a later version is kept, and breaks nothing.
later = Model.from_dict({**single.to_dict(), "license": "MIT"})
assert later.additional_properties == {"license": "MIT"}, later
