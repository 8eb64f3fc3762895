-- As before; an id that cannot be converted to UTF-8 is shown with escapes.
-- `mirrors` is an optional column of the view: unqualified, the name is that of the view's column if there is one, and
-- otherwise that of `none`.
CREATE OR REPLACE FUNCTION model_catalog.problems(schemes text[]) RETURNS TABLE (id text, field text, problem text)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    WITH checked AS MATERIALIZED (
        SELECT e.id COLLATE "C" AS id,
               model_catalog.row_problem(e.id COLLATE "C", e.name, e.download_url, e.file_size_gb::text, e.hash,
                   e.auth_required, e.auth_provider, e.save_path, e.dependencies::jsonb, e.description, e.mirrors,
                   schemes) AS problem
        FROM (SELECT NULL::jsonb AS mirrors) none
        CROSS JOIN LATERAL (
            SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash,
                   entries.auth_required, entries.auth_provider, entries.save_path, entries.dependencies,
                   entries.description, to_jsonb(mirrors) AS mirrors
            FROM model_catalog.entries
        ) e
    )
    SELECT replace(model_catalog.readable(c.id), E'\x01not UTF-8: ', ''), substring(c.problem FROM '^[a-z_]+'),
           c.problem
    FROM checked c WHERE c.problem IS NOT NULL
    UNION ALL
    -- Of several valid rows with the same id, one is served.
    SELECT d.id::text, 'id', 'another row has the same id: ids must be unique in the view'
    FROM (SELECT c.id, count(*) AS number FROM checked c WHERE c.problem IS NULL GROUP BY c.id HAVING count(*) > 1) d,
         generate_series(2, d.number);
END
$$;
