-- Rows are checked by the same rules in a database of any encoding, and by the rules that were added to the program:
--   - control characters are those of Unicode: in encodings such as WIN1252, the bytes 80 to 9f are letters and signs
--   - a text that cannot be converted to UTF-8, in which servers read, is a problem of its row
--   - a URL has no backslash, which some programs take for a slash
--   - a save_path ends with the name of a file, has no part that file systems refuse, and none that `pull` reserves
--
-- Constants with a backslash are written as E'', so that a session with standard_conforming_strings = off can write, too.

-- The code point of the first control character (C0, DEL and C1) in a text, -1 if the text cannot be converted to UTF-8,
-- otherwise NULL. In UTF-8, C1 is c2 followed by the code point; the digits are matched in pairs.
CREATE FUNCTION model_catalog.control_character(value text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    digits text;
BEGIN
    IF getdatabaseencoding() = 'UTF8' THEN
        RETURN ascii(substring(value FROM E'[\\x01-\\x1f\\x7f-\\x9f]'));
    ELSIF (value ~ E'[^\\x20-\\x7e]') IS NOT TRUE THEN
        RETURN NULL;
    ELSIF getdatabaseencoding() = 'SQL_ASCII' THEN
        digits := encode(convert_to(value, 'SQL_ASCII'), 'hex');
        IF digits !~ '^([0-7].|(c[2-9a-f]|d.)[89ab].|e0[ab].[89ab].|e[1-9a-cef]([89ab].){2}|ed[89].[89ab].'
                     '|f0[9ab].([89ab].){2}|f[1-3]([89ab].){3}|f48.([89ab].){2})*$' THEN
            RETURN -1;
        END IF;
    ELSE
        BEGIN
            digits := encode(convert_to(value, 'UTF8'), 'hex');
        EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN
            RETURN -1;
        END;
    END IF;
    RETURN ('x' || right(substring(digits FROM '^(?:..)*?(0[1-9a-f]|1.|7f|c2[89].)'), 2))::bit(8)::integer;
END
$$;
COMMENT ON FUNCTION model_catalog.control_character(text) IS
    'code point of the first control character, or -1 if the text cannot be converted to UTF-8';

-- Servers read texts through this function in a database whose encoding is neither UTF8 nor SQL_ASCII: a single text that
-- cannot be converted would fail the statement that reads all of them. Such a text becomes a mark and its bytes with
-- escapes.
CREATE FUNCTION model_catalog.readable(value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF model_catalog.control_character(value) = -1 THEN
        RETURN E'\x01not UTF-8: ' || encode(convert_to(value, 'SQL_ASCII'), 'escape');
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION model_catalog.readable(text) IS
    'the text, or its bytes with a mark and escapes if it cannot be converted to UTF-8';

-- Returns what is wrong with a text, or NULL.
CREATE OR REPLACE FUNCTION model_catalog.text_problem(field text, value text, required boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    control integer := model_catalog.control_character(value);
BEGIN
    RETURN CASE
        WHEN required AND coalesce(value, '') = ''
        THEN field || ' is missing: it needs a value that is not NULL or empty'
        WHEN control = -1 THEN field || ' has bytes that cannot be converted to UTF-8: correct them'
        WHEN control > 0
        THEN field || ' contains the control character U+' || lpad(upper(to_hex(control)), 4, '0') || ': remove it'
    END;
END
$$;

-- Returns what is wrong with a list of texts, or NULL. Postgres inlines this function, but not elements_problem(), so that
-- is called only if the list may contain a control character: as text, jsonb has those below U+0020 as escapes such as \n
-- or \u0001.
CREATE OR REPLACE FUNCTION model_catalog.list_problem(field text, list jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN list = '[]' THEN NULL
        WHEN jsonb_typeof(list) <> 'array' OR jsonb_path_exists(list, 'strict $[*] ? (@.type() != "string")')
        THEN field || ' must be a JSON array of strings'
        WHEN list::text ~ E'\\\\[bfnrtu]|[^\\x20-\\x7e]' THEN model_catalog.elements_problem(field, list)
    END
$$;

-- Returns what is wrong with a URL, or NULL.
CREATE OR REPLACE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    scheme text := lower(substring(url FROM '^ *([A-Za-z][A-Za-z0-9+.-]*):'));
BEGIN
    RETURN CASE
        WHEN scheme IS NULL THEN 'is no absolute URL: relative URL without a base'
        WHEN scheme <> ALL (schemes) THEN
            format('has the scheme `%s`: allowed are %s', scheme, array_to_string(schemes, ', '))
        WHEN strpos(url, E'\\') > 0 THEN
            'has a backslash, which programs interpret differently: write / or %5C'
        -- Up to the last `@` of the authority. These schemes take any number of slashes before it.
        WHEN substring(url FROM CASE
                 WHEN scheme IN ('http', 'https', 'ftp', 'ws', 'wss') THEN '^[^:]*:/*([^/?#]*)@'
                 WHEN scheme <> 'file' THEN '^[^:]*://([^/?#]*)@'
             END) NOT IN ('', ':') THEN
            'has a user name or a password before the host, which every client could read: remove it and set auth_required'
    END;
END
$$;

-- Returns what is wrong with a save_path that is not empty, or NULL. Names are as long as their UTF-8 on the machines.
CREATE FUNCTION model_catalog.save_path_problem(save_path text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
BEGIN
    RETURN 'save_path ' || CASE
        WHEN save_path LIKE '/%' THEN
            'is absolute: it must be relative to the models folder, without `..` and without backslashes'
        WHEN strpos(save_path, E'\\') > 0 THEN
            'has a backslash: it must be relative to the models folder, without `..` and without backslashes'
        WHEN save_path ~ '(^|/)[.][.](/|$)' THEN
            'escapes the models folder: it must be relative to the models folder, without `..` and without backslashes'
        WHEN save_path ~ '(^|/)[.]?$' THEN
            'has no file name: append one to the folder, such as `checkpoints/model.safetensors`'
        WHEN save_path ~* '(^|/)[.]model-catalog' THEN
            'has a part that begins with `.model-catalog`, which is reserved for files of `pull`: rename it'
        WHEN octet_length(convert_to(save_path, 'UTF8')) > 4096 THEN
            'has more than 4096 bytes, the most that Linux accepts: shorten it'
        WHEN EXISTS (SELECT FROM string_to_table(save_path, '/') AS p (part)
                     WHERE octet_length(convert_to(p.part, 'UTF8')) > 255) THEN
            'has a part of more than 255 bytes, the most that file systems accept: shorten it'
    END;
END
$$;

-- Returns the first rule that a row breaks, or NULL. It is PL/pgSQL because an SQL function would be inlined, and
-- starting the query would take longer than the rules. Callers pass the id with COLLATE "C", which then holds for all
-- texts: they are compared byte by byte, as in the program.
CREATE OR REPLACE FUNCTION model_catalog.row_problem(
    id text, name text, download_url text, file_size_gb text, hash text, auth_required boolean, auth_provider text,
    save_path text, dependencies jsonb, description text, mirrors jsonb, schemes text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    unicode boolean := getdatabaseencoding() = 'UTF8';
    -- Whether one of the texts breaks a rule of text_problem(): one test instead of seven, which nearly every row passes.
    odd boolean := '' IN (coalesce(id, ''), coalesce(name, ''), coalesce(download_url, ''), coalesce(save_path, ''))
                   OR concat(id, name, download_url, hash, auth_provider, save_path, description)
                      ~ CASE WHEN unicode THEN E'[\\x01-\\x1f\\x7f-\\x9f]' ELSE E'[^\\x20-\\x7e]' END;
    unreadable text;
BEGIN
    -- The program reads all columns before it checks any of them.
    IF NOT unicode AND (odd OR concat(dependencies, mirrors) ~ E'[^\\x20-\\x7e]') THEN
        SELECT c.field INTO unreadable
        FROM unnest(ARRAY['id', 'name', 'download_url', 'hash', 'auth_provider', 'save_path', 'dependencies',
                          'description', 'mirrors'],
                    ARRAY[id, name, download_url, hash, auth_provider, save_path, dependencies::text, description,
                          mirrors::text]) WITH ORDINALITY AS c (field, value, place)
        WHERE model_catalog.control_character(c.value) = -1
        ORDER BY c.place LIMIT 1;
        IF unreadable IS NOT NULL THEN
            RETURN unreadable || ' has bytes that cannot be converted to UTF-8: correct them';
        END IF;
    END IF;
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
        -- Most paths and URLs pass these tests and need no call. In UTF-8 a path has up to three times its bytes.
        CASE WHEN save_path ~ E'^/|\\\\|(^|/)([.]|$)' OR octet_length(save_path) > 85 THEN
            model_catalog.save_path_problem(save_path) END,
        CASE WHEN strpos(download_url, ':') = 0 OR split_part(download_url, ':', 1) <> ALL (schemes)
               OR strpos(download_url, '@') > 0 OR strpos(download_url, E'\\') > 0 THEN
            'download_url ' || model_catalog.url_problem(download_url, schemes) END,
        CASE WHEN mirrors <> '[]' THEN model_catalog.mirrors_problem(mirrors, schemes) END);
END
$$;

-- control_character() catches errors in these databases, which is not possible in a parallel query.
DO $$
DECLARE
    called regprocedure;
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        FOR called IN
            SELECT p.oid FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'model_catalog'::regnamespace
              AND p.proname IN ('control_character', 'readable', 'text_problem', 'elements_problem', 'list_problem',
                                'row_problem')
        LOOP
            EXECUTE format('ALTER FUNCTION %s PARALLEL UNSAFE', called);
        END LOOP;
    END IF;
END
$$;
