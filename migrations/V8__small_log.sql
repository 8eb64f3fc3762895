-- Writers pay less, and the log of changes stays small whatever the isolation level of the writers. What this changes:
--   log_change()   looks rows up by indexes, also while the tables are small
--   trim()         servers call it: it deletes older rows that writers in SERIALIZABLE leave
--   url_problem()  has the words of the program

-- As in V4, apart from two settings. The statements are planned once per session, also those of report_rejected(). For an
-- array of unknown length the planner expects ten ids, for which it reads all of a table of up to about 1,000 rows; that
-- took longer than everything else in here, and longer still in a session that had planned it before the table grew. What
-- has no index is read as before; the planner then adds so much to its costs that it would compile the statement.
CREATE OR REPLACE FUNCTION model_catalog.log_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    -- An index row has at most 2,704 bytes; this leaves space for the rest of the key.
    longest   CONSTANT integer := 2600;
    isolation CONSTANT text := current_setting('transaction_isolation');
    everything boolean := TG_OP = 'TRUNCATE' OR TG_NARGS = 0;
    old_id    text := CASE WHEN TG_NARGS = 0 THEN '''''' ELSE format('o.%I::text', TG_ARGV[0]) END;
    new_id    text := CASE WHEN TG_NARGS = 0 THEN '''''' ELSE format('n.%I::text', TG_ARGV[0]) END;
    touched   text;
    single    record;
    ids       text[];
    too_long  boolean;
    failure   text;
    settings  record;
    rejected  boolean;
BEGIN
    BEGIN
        IF TG_OP = 'INSERT' THEN
            touched := format('SELECT %s AS id FROM new_rows n', new_id);
        ELSIF TG_OP = 'DELETE' THEN
            touched := format('SELECT %s AS id FROM old_rows o', old_id);
        ELSIF TG_OP = 'UPDATE' THEN
            IF (SELECT count(*) FROM (SELECT FROM old_rows LIMIT 2) o) = 1
               AND (SELECT count(*) FROM (SELECT FROM new_rows LIMIT 2) n) = 1 THEN
                -- The same for a single row, in a form whose planning takes half the time.
                EXECUTE format(
                    'SELECT %s AS old, %s AS new FROM old_rows o, new_rows n WHERE record_image_ne(o.*, n.*)',
                    old_id, new_id)
                INTO single;
                ids := CASE WHEN single.old COLLATE "C" = single.new COLLATE "C" THEN ARRAY[single.old]
                            ELSE nullif(array_remove(ARRAY[single.old, single.new], NULL), '{}') END;
                too_long := greatest(octet_length(single.old), octet_length(single.new)) > longest;
            ELSE
                touched := format(
                    'SELECT unnest(ARRAY[p.id, q.id]) AS id
                     FROM (SELECT row_number() OVER () AS place, %s AS id, coalesce(o.*) AS content FROM old_rows o) p
                     FULL JOIN (SELECT row_number() OVER () AS place, %s AS id, coalesce(n.*) AS content FROM new_rows n) q
                     USING (place)
                     WHERE record_image_ne(p.content, q.content) IS NOT FALSE',
                    old_id, new_id);
            END IF;
        END IF;
        IF touched IS NOT NULL THEN
            EXECUTE format(
                'SELECT array_agg(DISTINCT t.id COLLATE "C"), max(octet_length(t.id)) > %s FROM (%s) t WHERE t.id IS NOT NULL',
                longest, touched)
            INTO ids, too_long;
        END IF;
        IF ids IS NULL AND TG_OP <> 'TRUNCATE' THEN
            RETURN NULL;
        END IF;
        everything := everything OR too_long;
        IF NOT everything THEN
            IF NOT has_table_privilege('model_catalog.changes'::regclass, 'INSERT') THEN
                RAISE insufficient_privilege;
            END IF;
            SELECT s.strict AS refuse, s.url_schemes, pg_notify(s.channel::text, '') INTO settings
            FROM model_catalog.state s;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        failure := SQLERRM;
        everything := true;
    END;

    IF everything THEN
        BEGIN
            PERFORM model_catalog.log_reload();
            PERFORM pg_notify(s.channel::text, '') FROM model_catalog.state s;
        EXCEPTION WHEN OTHERS THEN
            failure := concat_ws('; ', failure, SQLERRM);
        END;
    ELSE
        IF isolation IN ('read committed', 'read uncommitted') THEN
            WITH superseded AS (
                DELETE FROM model_catalog.changes d
                WHERE d.ctid = ANY (ARRAY(
                    SELECT c.ctid FROM model_catalog.changes c
                    WHERE c.model_id = ANY (ids) AND c.xid <> pg_current_xact_id()
                    FOR UPDATE SKIP LOCKED))
            )
            INSERT INTO model_catalog.changes AS c (model_id, xid, changed_at)
            SELECT i.id, pg_current_xact_id(), clock_timestamp() FROM unnest(ids) i (id)
            ON CONFLICT (model_id, xid) DO UPDATE SET changed_at = excluded.changed_at;
        ELSE
            INSERT INTO model_catalog.changes AS c (model_id, xid, changed_at)
            SELECT i.id, pg_current_xact_id(), clock_timestamp() FROM unnest(ids) i (id)
            ON CONFLICT (model_id, xid) DO UPDATE SET changed_at = excluded.changed_at;
        END IF;
        IF isolation = 'repeatable read' THEN
            IF (SELECT count(*) FROM model_catalog.changes c
                WHERE c.model_id = ANY (ids) AND c.xid <> pg_current_xact_id()) > 4 * cardinality(ids) THEN
                BEGIN
                    DELETE FROM model_catalog.changes d
                    WHERE d.ctid = ANY (ARRAY(
                        SELECT c.ctid FROM model_catalog.changes c
                        WHERE c.model_id = ANY (ids) AND c.xid <> pg_current_xact_id()
                        FOR UPDATE SKIP LOCKED));
                EXCEPTION WHEN serialization_failure THEN
                    NULL; -- Another transaction did it since this one began.
                END;
            END IF;
        END IF;
    END IF;
    -- A crash must not lose a change that servers have already read, so the commit must not be asynchronous.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;

    IF failure IS NOT NULL THEN
        -- ASCII only: a character that the client's encoding lacks would be an error.
        RAISE WARNING 'the models changed in table % are unknown, so servers read all models again: %',
            regexp_replace(TG_RELID::regclass::text, '[^ -~]', '?', 'g'), regexp_replace(failure, '[^ -~]', '?', 'g')
            USING HINT = 'Run model-catalog check: it names the call of watch() that repairs this.';
    ELSIF NOT everything AND TG_OP <> 'DELETE' THEN
        -- A DELETE is not checked: of several statements that delete a model, the first may leave a row that is rejected.
        -- In SERIALIZABLE, reading the view could make other transactions fail, for which a warning is no reason.
        IF settings.refuse OR isolation <> 'serializable' THEN
            IF cardinality(ids) > 100 THEN
                -- A plan for these very ids: it finds them in one pass if the view has no index for them.
                PERFORM set_config('plan_cache_mode', 'force_custom_plan', true);
                PERFORM set_config('enable_seqscan', 'on', true);
            END IF;
            -- An assignment, because PERFORM would run a query.
            rejected := model_catalog.report_rejected(ids, settings.refuse, settings.url_schemes);
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- Deletes older rows of models that have several in `changes`, and folds `reloads`, if there are many: ten times as many
-- changes as models, or a thousand reloads. Only writers in SERIALIZABLE leave so many (see V4). Servers call it after they
-- have read as many changes. Returns whether there were many.
--
-- It does what reload() does. A row may be deleted only if no server needs it. What a server that starts from a snapshot
-- file needs is unknown, and the order of transaction ids does not tell either: of two transactions, the one with the
-- smaller id may commit last. So every server reads everything again, which is little beside ten changes of each model.
--
-- Every role that may use the schema may call it: the server's role has no right to write. At most one call counts at a
-- time; only the first million changes are counted.
CREATE FUNCTION model_catalog.trim() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    many boolean := false;
BEGIN
    IF pg_try_advisory_xact_lock('model_catalog.changes'::regclass::oid::bigint) THEN
        SELECT count(*) > greatest(10000, 10 * count(DISTINCT c.model_id COLLATE "C"))
               OR (SELECT count(*) > 1000 FROM model_catalog.reloads)
        INTO many
        FROM (SELECT l.model_id FROM model_catalog.changes l LIMIT 1000000) c;
        IF many THEN
            PERFORM model_catalog.reload();
        END IF;
    END IF;
    RETURN many;
END
$$;
COMMENT ON FUNCTION model_catalog.trim() IS
    'deletes older rows of the log of changes if there are many; called by servers';

-- As before, with the words of the program.
CREATE OR REPLACE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    scheme text := lower(substring(url FROM '^ *([A-Za-z][A-Za-z0-9+.-]*):'));
BEGIN
    RETURN CASE
        WHEN scheme IS NULL THEN 'is not an absolute URL: relative URL without a base'
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
