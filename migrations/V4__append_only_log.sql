-- Writers pay little and never fail because of the triggers. What this migration changes:
--   changes        an append-only log: transactions that change the same model no longer wait for each other
--   reloads        "everything may have changed" as rows of their own, for the same reason; the view history counts them
--   watch(table)   without a column, for small tables whose rows belong to no single model
--   log_change()   falls back to "everything may have changed" if it cannot tell which models a statement changed
--   report_rejected()   its cost is linear in the number of rows, rejected or not
--
-- Servers of earlier versions work on this schema. Under concurrent writers their delta may return a model twice: they
-- serve the right row, but may list it as rejected ("another row has the same id") until its next change.

-- ---------------------------------------------------------------------------------------------------------------------
-- "Everything may have changed": one row per transaction that says so.

CREATE TABLE model_catalog.reloads (
    xid        xid8        PRIMARY KEY,
    changed_at timestamptz NOT NULL
);
COMMENT ON TABLE model_catalog.reloads IS
    'transactions after which every server reads everything, see reload(); their number is added to state.epoch';

-- The epoch is state.epoch plus the number of rows in `reloads`. Transactions only add rows, so none waits for another
-- one; log_reload() folds the rows into state.epoch, which leaves the sum as it was in every snapshot. So each snapshot
-- that sees one more reload has a greater epoch, and no two states share one.
CREATE OR REPLACE VIEW model_catalog.history AS
SELECT pg_catalog.concat_ws('/', h.system_identifier, coalesce(h.timeline, 'standby'), h.database, h.epoch) AS identity,
       h.*
FROM (
    SELECT (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c) AS system_identifier,
           CASE WHEN NOT pg_catalog.pg_is_in_recovery()
                THEN left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
           END AS timeline,
           (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS database,
           (SELECT s.epoch FROM model_catalog.state s) + (SELECT pg_catalog.count(*) FROM model_catalog.reloads) AS epoch,
           pg_catalog.pg_is_in_recovery() AS standby
) h;

-- As before, and a server is in step only if it has read every reload, too.
CREATE OR REPLACE VIEW model_catalog.fleet AS
WITH now AS MATERIALIZED (
    SELECT pg_catalog.pg_snapshot_xmax(s) AS xmax,
           pg_catalog.pg_snapshot_xmax(s)::text::bigint
               - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_snapshot_xip(s)) AS ended
    FROM pg_catalog.pg_current_snapshot() s
), replica AS (
    SELECT a.pid, a.usename, a.client_addr, n.part[1] AS name, n.part[2] AS revision, n.part[3]::xid8 AS synced_xid,
           CASE WHEN n.part[3] IS NOT NULL THEN ARRAY(
               SELECT greatest(n.part[3]::bigint - d::bigint, 0)::text::xid8
               FROM pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.substr(n.part[4], 2), '-')) d)
           END AS running_xids,
           CASE WHEN n.part[3] IS NOT NULL THEN coalesce(n.part[5]::integer, 0) END AS older_running
    FROM pg_catalog.pg_stat_activity a
    CROSS JOIN LATERAL pg_catalog.regexp_match(
        a.application_name,
        '^model-catalog ([!-~]+)(?: ([0-9a-f]{16}) ([0-9]{1,18})((?:-[0-9]{1,18})*)(?:[+]([0-9]{1,9}))?)?$') AS n(part)
    WHERE n.part IS NOT NULL
      AND a.datname = pg_catalog.current_database()
      AND coalesce(a.backend_type, 'client backend') = 'client backend'
)
SELECT r.name,
       r.revision,
       r.synced_xid,
       coalesce(
           NOT EXISTS (SELECT FROM model_catalog.changes c WHERE c.xid >= r.synced_xid AND c.xid < now.xmax)
           AND NOT EXISTS (SELECT FROM model_catalog.changes c WHERE c.xid = ANY (r.running_xids))
           AND NOT EXISTS (SELECT FROM model_catalog.reloads l WHERE l.xid >= r.synced_xid AND l.xid < now.xmax)
           AND NOT EXISTS (SELECT FROM model_catalog.reloads l WHERE l.xid = ANY (r.running_xids))
           AND (s.xid >= now.xmax OR s.xid < r.synced_xid AND s.xid <> ALL (r.running_xids))
           AND (r.older_running = 0
                OR r.synced_xid::text::bigint - pg_catalog.cardinality(r.running_xids) - r.older_running >= now.ended),
           false) AS in_step,
       r.running_xids,
       r.older_running,
       r.pid,
       r.usename,
       r.client_addr
FROM replica r, now, model_catalog.state s;

-- ---------------------------------------------------------------------------------------------------------------------
-- The log of changes: any number of rows per model, each from another transaction.

-- Statements that are inside the triggers now expect the old primary key, and would fail once it is gone. So this waits
-- for a moment at which no transaction writes to the watched tables, and lets no writer wait for longer than half a
-- second: less than deadlock_timeout (1 s), so that it cannot be a writer whom a deadlock with this ends.
DO $$
DECLARE
    source regclass;
    began  timestamptz;
    limits CONSTANT text := current_setting('lock_timeout');
BEGIN
    FOR attempt IN 1 .. 20 LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            began := clock_timestamp();
            FOR source IN
                SELECT DISTINCT t.tgrelid::regclass FROM pg_catalog.pg_trigger t
                WHERE t.tgfoid = 'model_catalog.log_change()'::regprocedure
                  AND has_table_privilege(t.tgrelid, 'UPDATE, DELETE, TRUNCATE')
            LOOP
                EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', source);
                IF clock_timestamp() > began + interval '400 milliseconds' THEN
                    RAISE lock_not_available;
                END IF;
            END LOOP;
            LOCK TABLE model_catalog.changes IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', limits, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt = 20 THEN
                RAISE EXCEPTION 'the watched tables are written to without a pause of 0.1 s, or by a long transaction'
                    USING ERRCODE = 'lock_not_available', HINT = 'Run the migration again at a quieter time.';
            END IF;
        END;
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$$;
ALTER TABLE model_catalog.changes
    DROP CONSTRAINT changes_pkey,
    ADD CONSTRAINT changes_pkey PRIMARY KEY (model_id, xid);
COMMENT ON TABLE model_catalog.changes IS
    'transactions that changed each model, at least the last one; written by triggers only';

-- Records that the current transaction may have changed everything. It waits for nobody: its row is its own. Once there
-- are more than a hundred rows, it adds their number to state.epoch and deletes them, unless another transaction is
-- doing so. Whoever holds the lock on the row of `state` is the only one that deletes.
--
-- In SERIALIZABLE it only writes: what a transaction reads there can make others fail.
CREATE FUNCTION model_catalog.log_reload() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO model_catalog.reloads AS r (xid, changed_at) VALUES (pg_current_xact_id(), clock_timestamp())
    ON CONFLICT (xid) DO UPDATE SET changed_at = excluded.changed_at;
    IF current_setting('transaction_isolation') = 'serializable' THEN
        RETURN;
    END IF;
    IF (SELECT count(*) > 100 FROM model_catalog.reloads) THEN
        BEGIN
            PERFORM FROM model_catalog.state FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                -- A statement of its own, which sees what the last holder of the lock did.
                WITH folded AS (
                    DELETE FROM model_catalog.reloads r WHERE r.xid <> pg_current_xact_id() RETURNING r.xid
                )
                UPDATE model_catalog.state s
                SET epoch = s.epoch + (SELECT count(*) FROM folded), xid = pg_current_xact_id();
            END IF;
        EXCEPTION WHEN serialization_failure THEN
            NULL; -- REPEATABLE READ: another transaction did it since this one began.
        END;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.log_reload() FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.log_reload() IS 'records that everything may have changed; called by reload() and the triggers';

-- As before. It also deletes older rows of models that have several in `changes`. The reload makes every server read
-- everything, so none needs these rows.
CREATE OR REPLACE FUNCTION model_catalog.reload() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM model_catalog.log_reload();
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        DELETE FROM model_catalog.changes d
        WHERE d.ctid = ANY (ARRAY(
            SELECT c.ctid FROM model_catalog.changes c
            WHERE EXISTS (SELECT FROM model_catalog.changes n WHERE n.model_id = c.model_id AND n.xid > c.xid)
            FOR UPDATE OF c SKIP LOCKED));
    END IF;
    PERFORM pg_notify(s.channel::text, '') FROM model_catalog.state s;
END
$$;

-- The trigger function that watch() installs. TG_ARGV[0] is the name of the id column; without one, every change means
-- that everything may have changed.
--
-- Of an UPDATE only the rows that differ are recorded. Old and new rows are paired by their places in the transition
-- tables. Any pairing of all rows finds every difference; this one is also the one that finds no others, because
-- Postgres adds to both tables row by row. Rows are compared by their bytes, which works for every type (json has no
-- `=`) and calls none of their functions. `o.*` as an argument is the row; `o` would be a column of that name if there is
-- one, and ROW(o.*) fails in Postgres 18 if the table has a virtual generated column.
--
-- The log: the transaction adds a row for each model, and deletes the rows of these models that it sees and that no other
-- transaction is deleting. So it waits for nobody, and no delta misses a change: if a snapshot does not see the
-- transaction whose row was deleted, it does not see this later one either, and a delta since then returns the model
-- because of this one. If this transaction is rolled back, the deleted rows are there again.
--   - READ COMMITTED: models keep one row each, except for rows of transactions that ran at the same time.
--   - REPEATABLE READ: deleting a row that another transaction has deleted since is an error. It is caught, but a
--     subtransaction for each statement is expensive, so rows are deleted when there are more than four for each model.
--   - SERIALIZABLE: nothing is deleted, because reading `changes` could make other transactions fail. Rows are deleted by
--     later changes of the same models in the other isolation levels, and by reload().
--
-- A write never fails because of this function, apart from errors that every later statement would get as well, such as
-- a full disk. The first block reads, and writes nothing: a subtransaction that writes takes a transaction id, and more
-- than 64 in one transaction slow down the whole server. If it fails (the column was renamed, a value has no text form,
-- the ids are too long for the index or too many for one array, `changes` was dropped), everything may have changed.
-- COLLATE "C", because the collation of the column may call two ids equal.
--
-- Only the queries on transition tables are dynamic, because they are planned on every call; the other statements are
-- planned once per session. The setting plan_cache_mode prevents custom plans, which look cheaper for an array of known
-- length, but would be planned on every call, too.
--
-- The notification has no payload: it cannot exceed the size limit, and Postgres sends only one per transaction.
CREATE OR REPLACE FUNCTION model_catalog.log_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET standard_conforming_strings = on
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
            END IF;
            -- An assignment, because PERFORM would run a query.
            rejected := model_catalog.report_rejected(ids, settings.refuse, settings.url_schemes);
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- As before, with one pass over the rows, and without waiting: the view may read tables that the writing transaction
-- does not, and a lock on one of those must not make it wait, or deadlock. A table that cannot be locked within the
-- lock_timeout counts as a view that cannot be read.
--
-- Two rows with the same id are reported in READ COMMITTED only. A snapshot that is as old as the transaction may still
-- contain a row that another transaction has deleted since, beside the new row that took its id.
CREATE OR REPLACE FUNCTION model_catalog.report_rejected(ids text[], strict boolean, schemes text[]) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '10ms'
AS $$
DECLARE
    listed  CONSTANT integer := 100;
    another CONSTANT text := 'another row has the same id: ids must be unique in the view';
    is_new  CONSTANT boolean := current_setting('transaction_isolation') IN ('read committed', 'read uncommitted');
    found   record;
    lines   text[];
    many    text;
    line    text;
BEGIN
    BEGIN
        -- The arrays have only the rows with a problem. Of several valid rows with the same id, one is served.
        SELECT count(*) FILTER (WHERE c.problem IS NOT NULL OR c.is_second) AS number,
               array_agg(c.id) FILTER (WHERE c.problem IS NOT NULL OR c.is_second) AS ids,
               array_agg(coalesce(c.problem, another)) FILTER (WHERE c.problem IS NOT NULL OR c.is_second) AS problems
        INTO found
        FROM (
            SELECT u.id, u.problem,
                   is_new AND row_number() OVER (PARTITION BY u.id, u.problem IS NULL) > 1 AS is_second
            FROM (
                SELECT e.id COLLATE "C" AS id,
                       model_catalog.row_problem(e.id COLLATE "C", e.name, e.download_url, e.file_size_gb::text, e.hash,
                           e.auth_required, e.auth_provider, e.save_path, e.dependencies::jsonb, e.description,
                           e.mirrors, report_rejected.schemes) AS problem
                FROM (SELECT NULL::jsonb AS mirrors) none
                CROSS JOIN LATERAL (
                    SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash,
                           entries.auth_required, entries.auth_provider, entries.save_path, entries.dependencies,
                           entries.description, to_jsonb(mirrors) AS mirrors
                    FROM model_catalog.entries
                    WHERE entries.id = ANY (report_rejected.ids)
                ) e
                OFFSET 0
            ) u
            ORDER BY 1
        ) c;
        IF found.number = 0 THEN
            RETURN false;
        END IF;
        lines := ARRAY(
            SELECT format('%smodel "%s" %s not be served: %s',
                          CASE WHEN l.problem = another THEN 'a second row of ' END,
                          regexp_replace(left(l.id, 200), E'[\\x01-\\x1f\\x7f-\\x9f]', '?', 'g'),
                          CASE WHEN report_rejected.strict THEN 'would' ELSE 'will' END,
                          l.problem)
            FROM unnest(found.ids[:listed], found.problems[:listed]) AS l (id, problem));
        IF cardinality(ids) > listed THEN
            many := format('%s of %s changed models', found.number, cardinality(ids));
        END IF;
        IF NOT strict AND many IS NOT NULL THEN
            RAISE WARNING '% will not be served: SELECT * FROM model_catalog.problems;', many;
        ELSIF NOT strict THEN
            FOREACH line IN ARRAY lines LOOP
                RAISE WARNING '%', line;
            END LOOP;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'the changed models could not be checked: %', regexp_replace(SQLERRM, '[^ -~]', '?', 'g');
        RETURN false;
    END;
    IF strict THEN
        RAISE EXCEPTION '%', coalesce(many || ' would not be served', lines[1])
            USING ERRCODE = 'check_violation',
                  DETAIL = array_to_string('Rows that servers reject are refused in strict mode.'::text
                           || CASE WHEN many IS NULL THEN lines[2:] ELSE lines END, E'\n'),
                  HINT = 'SELECT model_catalog.strict(false) makes this a warning.';
    END IF;
    RETURN true;
END
$$;

-- It has a backslash in a constant.
ALTER FUNCTION model_catalog.problems(text[]) SET standard_conforming_strings = on;

-- As before; without a column, every change of the table means that everything may have changed. That suits small tables
-- whose rows belong to no single model, such as providers or licences: each change makes every server read all models.
CREATE OR REPLACE FUNCTION model_catalog.watch(source regclass, id_column name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target   regclass;
    created  boolean := false;
    event    record;
    -- As pg_trigger stores it: each argument is followed by a zero byte.
    argument CONSTANT bytea := coalesce(convert_to(id_column::text, getdatabaseencoding()) || decode('00', 'hex'), '');
BEGIN
    IF id_column IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = source AND attname = id_column AND attnum > 0 AND NOT attisdropped
    ) THEN
        RAISE EXCEPTION 'column "%" of table % does not exist', id_column, source
            USING ERRCODE = 'undefined_column',
                  HINT = 'The second argument of watch() is the column that contains the id of the model of a row.';
    ELSIF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = source AND attname = id_column AND attgenerated = 'v'
    ) THEN
        RAISE EXCEPTION 'column "%" of table % is a virtual generated column, which triggers cannot read', id_column, source
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Name a stored column, or call watch() without a column.';
    END IF;
    FOR target IN SELECT source UNION SELECT relid FROM pg_partition_tree(source) LOOP
        FOR event IN
            SELECT * FROM (VALUES
                ('model_catalog_insert',   'INSERT',   'REFERENCING NEW TABLE AS new_rows'),
                ('model_catalog_update',   'UPDATE',   'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
                ('model_catalog_delete',   'DELETE',   'REFERENCING OLD TABLE AS old_rows'),
                ('model_catalog_truncate', 'TRUNCATE', '')) AS v (trigger_name, operation, transition)
        LOOP
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_trigger
                WHERE tgrelid = target AND tgname = event.trigger_name AND NOT tgisinternal
                  AND tgfoid = 'model_catalog.log_change()'::regprocedure
                  AND tgargs = argument);
            EXECUTE format(
                'CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION model_catalog.log_change(%s)',
                event.trigger_name, event.operation, target, event.transition, quote_literal(id_column));
            created := true;
        END LOOP;
    END LOOP;
    -- Changes made before the triggers existed were not recorded.
    IF created THEN
        PERFORM model_catalog.reload();
    END IF;
END
$$;
COMMENT ON FUNCTION model_catalog.watch(regclass, name) IS
    'records every change of a table that the view reads; the second argument is the column with the model id, if there is one';
