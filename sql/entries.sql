-- All rows of the view, for a full load. Columns: see `copied` in src/postgres/rows.rs.
SELECT e.id, e.name, e.download_url, e.file_size_gb::text, e.hash, e.auth_required, e.auth_provider, e.save_path,
       e.dependencies::text, e.description
FROM model_catalog.entries e
