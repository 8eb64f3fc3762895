// orval, with fetch.
import assert from "node:assert/strict";
import { getCatalog, getModel, listModels, lookUpModels } from "./orval/catalog.js";

const found = await lookUpModels({ model_ids: ["clip-l"] });
if (found.status !== 200) throw new Error(found.data.error);
for (const model of found.data.models) console.log(model.id, model.download_url, model.mirrors ?? []);

assert.deepEqual([found.data.models[0]?.id, found.data.not_found], ["clip-l", []]);
const model = await getModel("clip-l");
assert.equal(model.status === 200 && model.data.file_size_gb, 0.25);
const missing = await getModel("no-such-model");
assert.equal(missing.status === 404 && missing.data.model_id, "no-such-model");
const resolved = await lookUpModels({ model_ids: ["ltxv-13b-098-fp8"], resolve_dependencies: true });
assert.deepEqual(resolved.status === 200 && resolved.data.missing_dependencies, []);
const page = await listModels({ q: "vae", limit: 1 });
assert.equal(page.status === 200 && page.data.next, "flux-vae");
const catalog = await getCatalog();
assert.equal(catalog.status === 200 && catalog.data.source, "postgres");
