-- All rows of the view, for a full read. Columns: see src/postgres/rows.rs.
--
-- `mirrors` is an optional column of the view, an array in jsonb or text[]. Unqualified, the name is that of the view's
-- column if there is one, and otherwise that of `none`, so one statement reads views with and without it.
SELECT e.id, e.name, e.download_url, e.file_size_gb::text, e.hash, e.auth_required, e.auth_provider, e.save_path,
       e.dependencies::text, e.description, e.mirrors
FROM (SELECT NULL::jsonb AS mirrors) none
CROSS JOIN LATERAL (
    SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash, entries.auth_required,
           entries.auth_provider, entries.save_path, entries.dependencies, entries.description,
           pg_catalog.to_jsonb(mirrors)::text AS mirrors
    FROM model_catalog.entries
) e
