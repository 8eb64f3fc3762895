// openapi-typescript and openapi-fetch.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { paths } from "./catalog.js";

const catalog = createClient<paths>({ baseUrl: "http://127.0.0.1:3000" });
const { data, error } = await catalog.POST("/api/models/batch", { body: { model_ids: ["clip-l"] } });
if (!data) throw new Error(error.error);
for (const model of data.models) console.log(model.id, model.download_url, model.mirrors ?? []);

assert.deepEqual([data.models[0]?.id, data.not_found], ["clip-l", []]);
const found = await catalog.GET("/api/models/{id}", { params: { path: { id: "clip-l" } } });
const size: number | null | undefined = found.data?.file_size_gb;
assert.equal(size, 0.25);
const tag = found.response.headers.get("etag") ?? "";
const cached = await catalog.GET("/api/models/{id}", {
  params: { path: { id: "clip-l" }, header: { "If-None-Match": tag } },
});
assert.equal(cached.response.status, 304);
const missing = await catalog.GET("/api/models/{id}", { params: { path: { id: "a/b" } } });
assert.equal(missing.error && "model_id" in missing.error ? missing.error.model_id : undefined, "a/b");
const resolved = await catalog.POST("/api/models/batch", {
  body: { model_ids: ["ltxv-13b-098-fp8"], resolve_dependencies: true },
});
assert.deepEqual(resolved.data?.models.map((model) => model.id), ["t5xxl-fp16", "ltxv-13b-098-fp8"]);
const page = await catalog.GET("/api/models", { params: { query: { q: "vae", limit: 1 } } });
assert.deepEqual([page.data?.models.length, page.data?.next], [1, "flux-vae"]);
const ready = await catalog.GET("/readyz");
assert.equal(ready.data?.follow, "live");
const text = await catalog.GET("/metrics", { parseAs: "text" });
assert.match(text.data ?? "", /^# HELP /);
