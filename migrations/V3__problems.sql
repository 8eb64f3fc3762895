-- The rows that servers reject, each with the first rule that it breaks.
--
--     SELECT * FROM model_catalog.problems;                               -- with the schemes in model_catalog.state
--     SELECT * FROM model_catalog.problems(ARRAY['https', 's3']);         -- with CATALOG_URL_SCHEMES=https,s3
--
-- These are the rules of the program, with the same messages, except for one: whether the rest of a URL, above all its
-- host and port, can be parsed is decided by the program's URL parser only. `model-catalog check` runs that parser and
-- also reports the rows that it rejects. A row that is listed here is always rejected.
--
-- The triggers check the rows that a statement wrote, too: see report_rejected() and strict() below.
--
-- The functions run with the privileges of the caller and read only model_catalog.entries. Its name is resolved at run
-- time, so the view can be dropped and created again.

-- Returns what is wrong with a text, or NULL. Control characters (C0, DEL and C1) are rejected.
CREATE FUNCTION model_catalog.text_problem(field text, value text, required boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    RETURN CASE
        WHEN required AND coalesce(value, '') = ''
        THEN field || ' is missing: it needs a value that is not NULL or empty'
        WHEN value ~ '[\x01-\x1f\x7f-\x9f]'
        THEN field || ' contains the control character U+'
             || lpad(upper(to_hex(ascii(substring(value FROM '[\x01-\x1f\x7f-\x9f]')))), 4, '0') || ': remove it'
    END;
END
$$;

-- Returns what is wrong with the elements of a list of texts, or NULL.
CREATE FUNCTION model_catalog.elements_problem(field text, list jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT model_catalog.text_problem(field, string_agg(l.item, '' ORDER BY l.place), false)
    FROM jsonb_array_elements_text(list) WITH ORDINALITY AS l (item, place)
$$;

-- Returns what is wrong with a list of texts, or NULL. Postgres inlines this function, but not the one above, so that is
-- called only if the list may contain a control character: as text, jsonb has those below U+0020 as escapes such as \n or
-- \u0001.
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

-- Returns what is wrong with a URL, or NULL.
CREATE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    scheme text := lower(substring(url FROM '^ *([A-Za-z][A-Za-z0-9+.-]*):'));
BEGIN
    RETURN CASE
        WHEN scheme IS NULL THEN 'is no absolute URL: relative URL without a base'
        WHEN scheme <> ALL (schemes) THEN
            format('has the scheme `%s`: allowed are %s', scheme, array_to_string(schemes, ', '))
        -- Up to the last `@` of the authority. These schemes take any number of slashes before it, and backslashes.
        WHEN substring(url FROM CASE
                 WHEN scheme IN ('http', 'https', 'ftp', 'ws', 'wss') THEN '^[^:]*:[/\\]*([^/\\?#]*)@'
                 WHEN scheme <> 'file' THEN '^[^:]*://([^/?#]*)@'
             END) NOT IN ('', ':') THEN
            'has a user name or a password before the host, which every client could read: remove it and set auth_required'
    END;
END
$$;

-- Returns what is wrong with the first URL of a list that has a problem, or NULL.
CREATE FUNCTION model_catalog.mirrors_problem(mirrors jsonb, schemes text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT format('mirrors[%s] %s', m.place - 1, u.problem)
    FROM jsonb_array_elements_text(mirrors) WITH ORDINALITY AS m (url, place)
    CROSS JOIN LATERAL (SELECT model_catalog.url_problem(m.url COLLATE "C", schemes)) AS u (problem)
    WHERE u.problem IS NOT NULL
    ORDER BY m.place LIMIT 1
$$;

-- Returns the first rule that a row breaks, or NULL. It is PL/pgSQL because an SQL function would be inlined, and
-- starting the query would take longer than the rules. Callers pass the id with COLLATE "C", which then holds for all
-- texts: they are compared byte by byte, as in the program.
CREATE FUNCTION model_catalog.row_problem(
    id text, name text, download_url text, file_size_gb text, hash text, auth_required boolean, auth_provider text,
    save_path text, dependencies jsonb, description text, mirrors jsonb, schemes text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    -- Whether one of the texts breaks a rule of text_problem(): one test instead of seven, which nearly every row passes.
    odd boolean := '' IN (coalesce(id, ''), coalesce(name, ''), coalesce(download_url, ''), coalesce(save_path, ''))
                   OR concat(id, name, download_url, hash, auth_provider, save_path, description)
                      ~ '[\x01-\x1f\x7f-\x9f]';
BEGIN
    RETURN coalesce(
        CASE WHEN odd THEN coalesce(
            model_catalog.text_problem('id', id, true),
            model_catalog.text_problem('name', name, true),
            model_catalog.text_problem('download_url', download_url, true)) END,
        -- Numbers from this bound on are infinite as a double; NaN and Infinity are greater than every number.
        CASE WHEN file_size_gb LIKE '-%' OR file_size_gb::numeric >= 2::numeric ^ 1024 - 2::numeric ^ 970 THEN
            'file_size_gb is ' || left(file_size_gb, 40) || ': it must be a finite number that is not negative, or NULL'
        END,
        CASE WHEN odd THEN model_catalog.text_problem('hash', hash, false) END,
        CASE WHEN auth_required IS NULL THEN
            'auth_required is missing: it needs a value that is not NULL or empty' END,
        CASE WHEN odd THEN coalesce(
            model_catalog.text_problem('auth_provider', auth_provider, false),
            model_catalog.text_problem('save_path', save_path, true)) END,
        model_catalog.list_problem('dependencies', dependencies),
        CASE WHEN odd THEN model_catalog.text_problem('description', description, false) END,
        model_catalog.list_problem('mirrors', mirrors),
        'save_path ' || CASE
            WHEN save_path LIKE '/%' THEN 'is absolute'
            WHEN strpos(save_path, '\') > 0 THEN 'has a backslash'
            WHEN save_path ~ '(^|/)\.\.(/|$)' THEN 'escapes the models folder'
        END || ': it must be relative to the models folder, without `..` and without backslashes',
        -- Most URLs pass these three tests and need no call, which costs 4 of the 14 µs of all rules.
        CASE WHEN strpos(download_url, ':') = 0 OR split_part(download_url, ':', 1) <> ALL (schemes)
               OR strpos(download_url, '@') > 0 THEN
            'download_url ' || model_catalog.url_problem(download_url, schemes) END,
        CASE WHEN mirrors <> '[]' THEN model_catalog.mirrors_problem(mirrors, schemes) END);
END
$$;

-- `mirrors` is an optional column of the view: unqualified, the name is that of the view's column if there is one, and
-- otherwise that of `none`.
CREATE FUNCTION model_catalog.problems(schemes text[]) RETURNS TABLE (id text, field text, problem text)
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

CREATE VIEW model_catalog.problems AS
SELECT * FROM model_catalog.problems((SELECT s.url_schemes FROM model_catalog.state s));
COMMENT ON VIEW model_catalog.problems IS
    'rows that servers with the schemes in model_catalog.state reject, and why; `model-catalog check` also checks the hosts of URLs';

-- Reports the rows with these ids that servers reject: with a warning, or in strict mode with an error. Returns whether
-- there are any. The triggers of watch() call it with the ids that a statement wrote. The cost is one lookup in the view
-- per id, as for a server that reads the change.
--
-- If the rows cannot be read, such as when the view was dropped or calls a function that fails, the write succeeds with
-- a warning, in strict mode too: only rows that are known to be rejected are refused, and a broken view must not stop
-- writes to the tables below it. The block also covers RAISE WARNING, which fails if the client's encoding lacks a
-- character of the id; hence only ASCII in the warning of the handler.
CREATE FUNCTION model_catalog.report_rejected(ids text[], strict boolean, schemes text[]) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    listed   CONSTANT integer := 100;
    read     record;
    accepted text COLLATE "C";
    rejected bigint := 0;
    messages text[];
    message  text;
BEGIN
    BEGIN
        SELECT array_agg(c.id) AS ids, array_agg(c.problem) AS problems,
               bool_and(c.problem IS NULL AND c.is_duplicate IS NOT TRUE) IS NOT FALSE AS good
        INTO read
        FROM (
            SELECT e.id COLLATE "C" AS id,
                   e.id = lag(e.id) OVER (ORDER BY e.id COLLATE "C") AS is_duplicate,
                   model_catalog.row_problem(e.id COLLATE "C", e.name, e.download_url, e.file_size_gb::text, e.hash,
                       e.auth_required, e.auth_provider, e.save_path, e.dependencies::jsonb, e.description, e.mirrors,
                       schemes) AS problem
            FROM (SELECT NULL::jsonb AS mirrors) none
            CROSS JOIN LATERAL (
                SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash,
                       entries.auth_required, entries.auth_provider, entries.save_path, entries.dependencies,
                       entries.description, to_jsonb(mirrors) AS mirrors
                FROM model_catalog.entries
                WHERE entries.id = ANY (ids)
            ) e
            ORDER BY 1
        ) c;
        IF read.good THEN
            RETURN false;
        END IF;
        FOR place IN 1 .. cardinality(read.ids) LOOP
            IF read.problems[place] IS NULL AND read.ids[place] IS DISTINCT FROM accepted THEN
                accepted := read.ids[place];
                CONTINUE;
            END IF;
            rejected := rejected + 1;
            CONTINUE WHEN rejected > listed;
            messages := messages || format(
                '%smodel "%s" %s not be served: %s',
                CASE WHEN read.problems[place] IS NULL THEN 'a second row of ' END,
                regexp_replace(left(read.ids[place], 200), '[\x01-\x1f\x7f-\x9f]', '?', 'g'),
                CASE WHEN strict THEN 'would' ELSE 'will' END,
                coalesce(read.problems[place], 'another row has the same id: ids must be unique in the view'));
        END LOOP;
        IF cardinality(ids) > listed THEN
            message := format('%s of %s changed models', rejected, cardinality(ids));
        END IF;
        IF NOT strict AND message IS NOT NULL THEN
            RAISE WARNING '% will not be served: SELECT * FROM model_catalog.problems;', message;
        ELSIF NOT strict THEN
            FOREACH message IN ARRAY messages LOOP
                RAISE WARNING '%', message;
            END LOOP;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'the changed models could not be checked: %', regexp_replace(SQLERRM, '[^\x20-\x7e]', '?', 'g');
        RETURN false;
    END;
    IF strict THEN
        RAISE EXCEPTION '%', coalesce(message || ' would not be served', messages[1])
            USING ERRCODE = 'check_violation',
                  DETAIL = array_to_string('Rows that servers reject are refused in strict mode.'::text
                           || CASE WHEN message IS NULL THEN messages[2:] ELSE messages END, E'\n'),
                  HINT = 'SELECT model_catalog.strict(false) makes this a warning.';
    END IF;
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.report_rejected(text[], boolean, text[]) FROM PUBLIC;

-- Whether a statement that makes a row that servers reject is refused, or succeeds with a warning. Without strict mode
-- replicas can differ: one that was running serves the last good version of the row, and one that starts later has none.
CREATE FUNCTION model_catalog.strict(enabled boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE model_catalog.state SET strict = enabled;
$$;
REVOKE ALL ON FUNCTION model_catalog.strict(boolean) FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.strict(boolean) IS
    'whether writes of rows that servers reject are refused, or succeed with a warning';
