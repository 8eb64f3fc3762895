-- The rows that servers reject, each with the first rule that it breaks.
--
--     SELECT * FROM model_catalog.problems;                               -- default settings
--     SELECT * FROM model_catalog.problems(ARRAY['https', 's3']);         -- with CATALOG_URL_SCHEMES=https,s3
--
-- These are the rules of the program, with the same messages, except for one: whether the rest of a URL, above all its
-- host and port, can be parsed is decided by the program's URL parser only. `model-catalog check` runs that parser and
-- also reports the rows that it rejects. A row that is listed here is always rejected.
--
-- The functions run with the privileges of the caller and read only model_catalog.entries. Its name is resolved at run
-- time, so the view can be dropped and created again.

-- Returns what is wrong with a text, or NULL. Control characters (C0, DEL and C1) are rejected.
CREATE FUNCTION model_catalog.text_problem(field text, value text, required boolean) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN required AND coalesce(value, '') = ''
        THEN field || ' is missing: it needs a value that is not NULL or empty'
        WHEN value ~ '[\x01-\x1f\x7f-\x9f]'
        THEN field || ' contains the control character U+'
             || lpad(upper(to_hex(ascii(substring(value FROM '[\x01-\x1f\x7f-\x9f]')))), 4, '0') || ': remove it'
    END
$$;

-- Returns what is wrong with the elements of a list of texts, or NULL.
CREATE FUNCTION model_catalog.elements_problem(field text, list jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT model_catalog.text_problem(field, string_agg(l.item, '' ORDER BY l.place), false)
    FROM jsonb_array_elements_text(list) WITH ORDINALITY AS l (item, place)
$$;

-- Returns what is wrong with a list of texts, or NULL. Postgres inlines this function into a query, but not the one
-- above, so that is called only if the list may contain a control character: as text, jsonb has those below U+0020 as
-- escapes such as \n or \u0001.
CREATE FUNCTION model_catalog.list_problem(field text, list jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN list = '[]' THEN NULL
        WHEN jsonb_typeof(list) <> 'array' OR jsonb_path_exists(list, 'strict $[*] ? (@.type() != "string")')
        THEN field || ' must be a JSON array of strings'
        WHEN list::text ~ '\\[bfnrtu]|[\x7f-\x9f]' THEN model_catalog.elements_problem(field, list)
    END
$$;

-- The scheme of a URL in lower case; NULL if it has none.
CREATE FUNCTION model_catalog.url_scheme(url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT lower(substring(url FROM '^ *([A-Za-z][A-Za-z0-9+.-]*):'))
$$;

-- Returns what is wrong with a URL, or NULL. STABLE like format(), or Postgres would not inline it.
CREATE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN model_catalog.url_scheme(url) IS NULL THEN 'is no absolute URL: relative URL without a base'
        WHEN model_catalog.url_scheme(url) <> ALL (schemes) THEN
            format('has the scheme `%s`: allowed are %s', model_catalog.url_scheme(url), array_to_string(schemes, ', '))
        -- Up to the last `@` of the authority. These schemes take any number of slashes before it, and backslashes.
        WHEN substring(url FROM CASE
                 WHEN model_catalog.url_scheme(url) IN ('http', 'https', 'ftp', 'ws', 'wss')
                 THEN '^[^:]*:[/\\]*([^/\\?#]*)@'
                 WHEN model_catalog.url_scheme(url) <> 'file' THEN '^[^:]*://([^/?#]*)@'
             END) NOT IN ('', ':') THEN
            'has a user name or a password before the host, which every client could read: remove it and set auth_required'
    END
$$;

-- Text is compared byte by byte, as in the program: hence COLLATE "C". `mirrors` is an optional column of the view:
-- unqualified, the name is that of the view's column if there is one, and otherwise that of `none`.
CREATE FUNCTION model_catalog.problems(schemes text[]) RETURNS TABLE (id text, field text, problem text)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    WITH rows AS (
        SELECT e.id COLLATE "C" AS id, e.name COLLATE "C" AS name, e.download_url COLLATE "C" AS download_url,
               e.file_size_gb::text AS file_size_gb, e.hash COLLATE "C" AS hash, e.auth_required,
               e.auth_provider COLLATE "C" AS auth_provider, e.save_path COLLATE "C" AS save_path,
               e.dependencies::jsonb AS dependencies, e.description COLLATE "C" AS description,
               e.mirrors
        FROM (SELECT NULL::jsonb AS mirrors) none
        CROSS JOIN LATERAL (
            SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash,
                   entries.auth_required, entries.auth_provider, entries.save_path, entries.dependencies,
                   entries.description, to_jsonb(mirrors) AS mirrors
            FROM model_catalog.entries
        ) e
    ), checked AS MATERIALIZED (
        SELECT r.id, coalesce(
            model_catalog.text_problem('id', r.id, true),
            model_catalog.text_problem('name', r.name, true),
            model_catalog.text_problem('download_url', r.download_url, true),
            -- Numbers from this bound on are infinite as a double; NaN and Infinity are greater than every number.
            CASE WHEN r.file_size_gb LIKE '-%' OR r.file_size_gb::numeric >= 2::numeric ^ 1024 - 2::numeric ^ 970 THEN
                'file_size_gb is ' || left(r.file_size_gb, 40)
                || ': it must be a finite number that is not negative, or NULL' END,
            model_catalog.text_problem('hash', r.hash, false),
            CASE WHEN r.auth_required IS NULL THEN
                'auth_required is missing: it needs a value that is not NULL or empty' END,
            model_catalog.text_problem('auth_provider', r.auth_provider, false),
            model_catalog.text_problem('save_path', r.save_path, true),
            model_catalog.list_problem('dependencies', r.dependencies),
            model_catalog.text_problem('description', r.description, false),
            model_catalog.list_problem('mirrors', r.mirrors),
            'save_path ' || CASE
                WHEN r.save_path LIKE '/%' THEN 'is absolute'
                WHEN strpos(r.save_path, '\') > 0 THEN 'has a backslash'
                WHEN r.save_path ~ '(^|/)\.\.(/|$)' THEN 'escapes the models folder'
            END || ': it must be relative to the models folder, without `..` and without backslashes',
            'download_url ' || model_catalog.url_problem(r.download_url, schemes),
            CASE WHEN r.mirrors <> '[]' THEN
                (SELECT format('mirrors[%s] %s', m.place - 1, u.problem)
                 FROM jsonb_array_elements_text(r.mirrors) WITH ORDINALITY AS m (url, place)
                 CROSS JOIN LATERAL (SELECT model_catalog.url_problem(m.url COLLATE "C", schemes)) AS u (problem)
                 WHERE u.problem IS NOT NULL
                 ORDER BY m.place LIMIT 1)
            END) AS problem
        FROM rows r
    )
    SELECT c.id::text, substring(c.problem FROM '^\w+'), c.problem FROM checked c WHERE c.problem IS NOT NULL
    UNION ALL
    -- Of several valid rows with the same id, one is served.
    SELECT d.id::text, 'id', 'another row has the same id: ids must be unique in the view'
    FROM (SELECT c.id, count(*) AS number FROM checked c WHERE c.problem IS NULL GROUP BY c.id HAVING count(*) > 1) d,
         generate_series(2, d.number);
END
$$;
COMMENT ON FUNCTION model_catalog.problems(text[]) IS
    'rows that servers with these CATALOG_URL_SCHEMES reject, and why; `model-catalog check` also checks the hosts of URLs';

CREATE VIEW model_catalog.problems AS SELECT * FROM model_catalog.problems(ARRAY['http', 'https']);
COMMENT ON VIEW model_catalog.problems IS
    'rows that servers with the default settings reject, and why; `model-catalog check` also checks the hosts of URLs';
