-- What the import would change: rows that the table does not have (`added`) and rows that differ (`fields`).
-- Arrays are compared as jsonb, because json has no equality operator.
CREATE TEMPORARY TABLE difference ON COMMIT DROP AS
SELECT i.id, m.id IS NULL AS added, c.fields
FROM pg_temp.incoming i
LEFT JOIN public.models m ON m.id = i.id
CROSS JOIN LATERAL (
    SELECT pg_catalog.array_remove(ARRAY[
        CASE WHEN i.name          IS DISTINCT FROM m.name          THEN 'name' END,
        CASE WHEN i.download_url  IS DISTINCT FROM m.download_url  THEN 'download_url' END,
        CASE WHEN i.file_size_gb  IS DISTINCT FROM m.file_size_gb  THEN 'file_size_gb' END,
        CASE WHEN i.hash          IS DISTINCT FROM m.hash          THEN 'hash' END,
        CASE WHEN i.auth_required IS DISTINCT FROM m.auth_required THEN 'auth_required' END,
        CASE WHEN i.auth_provider IS DISTINCT FROM m.auth_provider THEN 'auth_provider' END,
        CASE WHEN i.save_path     IS DISTINCT FROM m.save_path     THEN 'save_path' END,
        CASE WHEN pg_catalog.to_jsonb(i.dependencies) IS DISTINCT FROM pg_catalog.to_jsonb(m.dependencies)
             THEN 'dependencies' END,
        CASE WHEN i.description   IS DISTINCT FROM m.description   THEN 'description' END
      , CASE WHEN coalesce(pg_catalog.to_jsonb(i.mirrors), '[]') <> coalesce(pg_catalog.to_jsonb(m.mirrors), '[]') THEN 'mirrors' END
    ]::text[], NULL) AS fields
) c
WHERE m.id IS NULL OR c.fields <> '{}'
