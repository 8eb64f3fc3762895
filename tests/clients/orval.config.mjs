export default {
  catalog: {
    input: "openapi.json",
    output: { target: "orval/catalog.ts", client: "fetch", baseUrl: "http://127.0.0.1:3000" },
  },
};
