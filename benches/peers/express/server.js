// The obvious implementation: Express and node-postgres, one query per request.
// DATABASE_URL: the database; PORT: the port on 127.0.0.1.
import express from "express";
import pg from "pg";

const COLUMNS = `id, name, download_url, file_size_gb::float8, hash, auth_required, auth_provider, save_path,
                 dependencies, description`;

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const app = express();
app.use(express.json());

app.get("/api/models/:id", async (request, response) => {
  const { rows } = await pool.query(`SELECT ${COLUMNS} FROM models WHERE id = $1`, [request.params.id]);
  if (rows.length === 0) {
    response.status(404).json({ error: "Model not found", model_id: request.params.id });
  } else {
    response.json(rows[0]);
  }
});

app.post("/api/models/batch", async (request, response) => {
  const ids = request.body.model_ids;
  if (!Array.isArray(ids)) {
    response.status(400).json({ error: "model_ids must be an array" });
    return;
  }
  const { rows } = await pool.query(`SELECT ${COLUMNS} FROM models WHERE id = ANY($1)`, [ids]);
  const found = new Map(rows.map((row) => [row.id, row]));
  response.json({
    models: [...new Set(ids)].filter((id) => found.has(id)).map((id) => found.get(id)),
    not_found: ids.filter((id) => !found.has(id)),
  });
});

app.listen(Number(process.env.PORT), "127.0.0.1");
