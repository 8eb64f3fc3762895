-- Which rows of the view the servers refuse, and why: the rules of the program, in SQL.
--
--     SELECT * FROM model_catalog.problems;                               -- as with the default settings
--     SELECT * FROM model_catalog.problems(ARRAY['https', 's3']);         -- with CATALOG_URL_SCHEMES=https,s3
--
-- Rules and words are those of `model-catalog check`, which runs the program's own code and is what counts. They
-- differ where a host is more than Postgres can judge: one with letters beyond ASCII, percent-encoded or not, or with a
-- label that begins with `xn--` passes here. Of an address that is broken and of a scheme that is not allowed, the scheme
-- is what is said here.
--
-- These functions run with the rights and the search_path of who asks, as the view itself does, and they read nothing
-- but model_catalog.entries. plpgsql looks that name up when it runs, so that the view can be dropped and made anew.

-- What is wrong with a text, or NULL. C0 and C1 control characters and DEL are refused.
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

-- What is wrong with dependencies, or NULL. A subscript that is no array gives no rows, so its shape comes first.
CREATE FUNCTION model_catalog.dependencies_problem(value jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN value IS NULL OR value = '[]' THEN NULL
        WHEN jsonb_typeof(value) <> 'array' OR jsonb_path_exists(value, 'strict $[*] ? (@.type() != "string")')
        THEN 'dependencies must be a JSON array of strings'
        ELSE (SELECT p.problem
              FROM jsonb_array_elements_text(value) WITH ORDINALITY AS d (id, place),
                   LATERAL (SELECT model_catalog.text_problem('dependencies', d.id COLLATE "C", false)) AS p (problem)
              WHERE p.problem IS NOT NULL ORDER BY d.place LIMIT 1)
    END
$$;

-- What is wrong with a host of http, https, ftp, ws or wss, or NULL: the host parser of the WHATWG URL standard.
CREATE FUNCTION model_catalog.host_problem(host text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    octet  constant text := '(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])';
    parts  text[];
    number text;
    value  numeric;
    digit  text;
    code   text;
BEGIN
    IF host LIKE '[%' THEN
        -- Up to eight groups with one `::` for some of them; an IPv4 address at the end stands for two.
        host := regexp_replace(host, '(?<=:)' || octet || '(\.' || octet || '){3}\]$', '0:0]');
        RETURN CASE
            WHEN host ~* '^\[([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}\]$' THEN NULL
            WHEN host ~* '^\[(([0-9a-f]{1,4}:)*[0-9a-f]{1,4})?::(([0-9a-f]{1,4}:)*[0-9a-f]{1,4})?\]$'
             AND (SELECT count(*) FROM regexp_matches(host, '[0-9A-Fa-f]+', 'g')) <= 7 THEN NULL
            ELSE 'invalid IPv6 address'
        END;
    END IF;
    IF host ~* '[][ #/:<>?@\\^|]|%(?![0-9a-f][0-9a-f])|%([01][0-9a-f]|2[035f]|3[acef]|40|5[b-e]|7[cf])' THEN
        RETURN 'invalid international domain name';
    END IF;
    FOR code IN SELECT DISTINCT m[1] FROM regexp_matches(host, '%([0-7][0-9A-Fa-f])', 'g') m LOOP
        host := replace(host, '%' || code, chr(('x' || code)::bit(8)::int));
    END LOOP;
    -- A host whose last label is a number is an IPv4 address: up to four numbers, decimal, octal (0…) or hex (0x…).
    parts := string_to_array(regexp_replace(host, '\.$', ''), '.');
    IF host ~ '[%\u0080-\U0010ffff]' OR parts[cardinality(parts)] !~* '^([0-9]+|0x[0-9a-f]*)$' THEN
        RETURN NULL;
    END IF;
    IF cardinality(parts) > 4 THEN
        RETURN 'invalid IPv4 address';
    END IF;
    FOR place IN 1 .. cardinality(parts) LOOP
        number := lower(parts[place]);
        IF number !~ '^(0x[0-9a-f]*|0[0-7]*|[1-9][0-9]*)$' THEN
            RETURN 'invalid IPv4 address';
        END IF;
        value := 0;
        FOREACH digit IN ARRAY string_to_array(regexp_replace(number, '^0x', ''), NULL) LOOP
            value := value * CASE WHEN number LIKE '0x%' THEN 16 WHEN number LIKE '0%' THEN 8 ELSE 10 END
                     + strpos('0123456789abcdef', digit) - 1;
            EXIT WHEN value >= 4294967296;
        END LOOP;
        IF value >= (CASE WHEN place < cardinality(parts) THEN 256 ELSE 256::numeric ^ (5 - place) END) THEN
            RETURN 'invalid IPv4 address';
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- What is wrong with an address, or NULL: what the parser of the WHATWG URL standard refuses, other schemes, and a user
-- name or a password before its host.
CREATE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    scheme    text := lower(substring(btrim(url, ' ') FROM '^([A-Za-z][A-Za-z0-9+.-]*):'));
    special   boolean := scheme IN ('http', 'https', 'ftp', 'ws', 'wss');
    rest      text;
    authority text;
    host      text;
    port      text;
    problem   text;
BEGIN
    IF scheme IS NULL THEN
        RETURN 'download_url is no absolute URL: relative URL without a base';
    ELSIF NOT scheme = ANY (schemes) THEN
        RETURN format('download_url has the scheme `%s`: allowed are %s', scheme, array_to_string(schemes, ', '));
    END IF;
    rest := substr(btrim(url, ' '), length(scheme) + 2);
    IF special THEN
        authority := substring(regexp_replace(rest, '^[/\\]*', '') FROM '^[^/\\?#]*');
    ELSIF rest LIKE '//%' AND scheme <> 'file' THEN
        authority := substring(substr(rest, 3) FROM '^[^/?#]*');
    ELSE
        RETURN NULL;
    END IF;
    host := substring(regexp_replace(authority, '^.*@', '') FROM '^(?:\[[^]]*\]?|[^:[])*');
    port := substr(regexp_replace(authority, '^.*@', ''), length(host) + 1);
    problem := CASE
        WHEN host = '' AND (special OR port <> '' OR authority ~ '[^:@].*@|:.+@') THEN 'empty host'
        WHEN special OR host LIKE '[%' THEN model_catalog.host_problem(host)
        WHEN host ~ '[][ <>\\^|]' THEN 'invalid domain character'
    END;
    -- Leading zeros are harmless; the parser counts its way through the digits.
    IF problem IS NULL AND (port !~ '^(:0*[0-9]{0,5})?$' OR nullif(substr(port, 2), '')::numeric > 65535) THEN
        problem := 'invalid port number';
    END IF;
    RETURN CASE
        WHEN problem IS NOT NULL THEN 'download_url is no absolute URL: ' || problem
        -- Before the last `@`; nothing, and a colon alone, is no user name and no password.
        WHEN authority LIKE '%@%' AND regexp_replace(authority, '@[^@]*$', '') NOT IN ('', ':') THEN
            'download_url has a user name or a password before the host, which everybody who asks for the model would '
            || 'read: take it out and set auth_required'
    END;
END
$$;

-- The first rule that each refused row breaks, in the order of the columns. Ids are bytes to the program, hence "C".
CREATE FUNCTION model_catalog.problems(schemes text[]) RETURNS TABLE (id text, field text, problem text)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    WITH rows AS (
        SELECT e.id COLLATE "C" AS id, e.name COLLATE "C" AS name, e.download_url COLLATE "C" AS download_url,
               e.file_size_gb::numeric AS file_size_gb, e.hash COLLATE "C" AS hash, e.auth_required,
               e.auth_provider COLLATE "C" AS auth_provider, e.save_path COLLATE "C" AS save_path,
               e.dependencies::jsonb AS dependencies, e.description COLLATE "C" AS description
        FROM model_catalog.entries e
    ), judged AS MATERIALIZED (
        SELECT r.id, coalesce(
            model_catalog.text_problem('id', r.id, true),
            model_catalog.text_problem('name', r.name, true),
            model_catalog.text_problem('download_url', r.download_url, true),
            CASE WHEN r.file_size_gb < 0 OR r.file_size_gb >= 1.7976931348623158e308 THEN
                'file_size_gb is ' || left(r.file_size_gb::text, 40)
                || ': it must be a finite number that is not negative, or NULL' END,
            model_catalog.text_problem('hash', r.hash, false),
            CASE WHEN r.auth_required IS NULL THEN
                'auth_required is missing: it needs a value that is not NULL or empty' END,
            model_catalog.text_problem('auth_provider', r.auth_provider, false),
            model_catalog.text_problem('save_path', r.save_path, true),
            model_catalog.dependencies_problem(r.dependencies),
            model_catalog.text_problem('description', r.description, false),
            'save_path ' || CASE
                WHEN r.save_path LIKE '/%' THEN 'is absolute'
                WHEN strpos(r.save_path, '\') > 0 THEN 'has a backslash'
                WHEN r.save_path ~ '(^|/)\.\.(/|$)' THEN 'escapes the models folder'
            END || ': it must be relative to the models folder, without `..` and without backslashes',
            -- The first form is one that no parser could refuse, and the usual one; the parser is slow.
            CASE WHEN split_part(r.download_url, '://', 1) = ANY (schemes)
                  AND r.download_url ~ '^[^:/]+://[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z][A-Za-z0-9-]*)*(/[!-~]*)?$'
                 THEN NULL ELSE model_catalog.url_problem(r.download_url, schemes) END) AS problem
        FROM rows r
    )
    SELECT j.id::text, split_part(j.problem, ' ', 1), j.problem FROM judged j WHERE j.problem IS NOT NULL
    UNION ALL
    -- Of several good rows with one id, one is served.
    SELECT d.id::text, 'id', 'another row has the same id: ids must be unique in the view'
    FROM (SELECT j.id, count(*) AS number FROM judged j WHERE j.problem IS NULL GROUP BY j.id HAVING count(*) > 1) d,
         generate_series(2, d.number);
END
$$;
COMMENT ON FUNCTION model_catalog.problems(text[]) IS 'rows that servers with these CATALOG_URL_SCHEMES refuse, and why';

CREATE VIEW model_catalog.problems AS SELECT * FROM model_catalog.problems(ARRAY['http', 'https']);
COMMENT ON VIEW model_catalog.problems IS 'rows that the servers refuse, and why; with other schemes than http and https see the function of this name';
