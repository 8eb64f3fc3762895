-- The database objects of model-catalog. Read the three migrations in order:
--   V1  the change log, and the triggers that write it
--   V2  which servers are connected, and waiting until all of them serve a change
--   V3  the rows that servers reject, and how the triggers report them
--
-- All objects live in the schema model_catalog: two small tables, a few views and functions. Your own tables are not
-- modified; only watch() below creates triggers on a table, and only when you call it.
--
-- How a change reaches the servers: the triggers record the id of each changed model in `changes`, in the changing
-- transaction, and send one NOTIFY. Each server listens on the channel, and reads the rows of the view
-- model_catalog.entries whose ids were recorded since its last read.

CREATE SCHEMA IF NOT EXISTS model_catalog;
COMMENT ON SCHEMA model_catalog IS 'model-catalog: the view that the servers read, and the log of changes';

-- One row per model that has ever changed, written in the transaction that changes the model. Because a later change
-- updates the row, the table does not grow with the number of changes and needs no pruning.
CREATE TABLE model_catalog.changes (
    model_id   text        PRIMARY KEY,
    xid        xid8        NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX changes_xid_idx ON model_catalog.changes (xid);
COMMENT ON TABLE model_catalog.changes IS 'last transaction that changed each model; written by triggers only';

-- A single row. When the epoch changes, every server reads the whole view again.
CREATE TABLE model_catalog.state (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch       bigint  NOT NULL DEFAULT 1,
    channel     name    NOT NULL DEFAULT 'model_catalog',
    xid         xid8    NOT NULL DEFAULT '0',
    strict      boolean NOT NULL DEFAULT false,
    url_schemes text[]  NOT NULL DEFAULT '{http,https}'
);
INSERT INTO model_catalog.state DEFAULT VALUES;
COMMENT ON TABLE model_catalog.state IS 'epoch of the catalog (see reload()), and the settings of the triggers';
COMMENT ON COLUMN model_catalog.state.channel IS 'channel for notifications: the CATALOG_CHANNEL of the servers';
COMMENT ON COLUMN model_catalog.state.strict IS 'whether rows that servers reject are refused; see strict()';
COMMENT ON COLUMN model_catalog.state.url_schemes IS 'schemes allowed in download_url: the CATALOG_URL_SCHEMES of the servers';
COMMENT ON COLUMN model_catalog.state.xid IS 'last transaction that changed the epoch';

-- Identifies the history that transaction ids belong to. Ids of two histories cannot be compared: after a failover they
-- may be assigned a second time, and a copy of a database continues from the same number.
-- The timeline is taken from the WAL position, because the one in the control file lags behind after a promotion.
CREATE VIEW model_catalog.history AS
SELECT pg_catalog.concat_ws('/', h.system_identifier, coalesce(h.timeline, 'standby'), h.database, h.epoch) AS identity,
       h.*
FROM (
    SELECT (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c) AS system_identifier,
           CASE WHEN NOT pg_catalog.pg_is_in_recovery()
                THEN left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
           END AS timeline,
           (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS database,
           (SELECT s.epoch FROM model_catalog.state s) AS epoch,
           pg_catalog.pg_is_in_recovery() AS standby
) h;
COMMENT ON VIEW model_catalog.history IS 'history that transaction ids belong to; a standby has no timeline';

CREATE FUNCTION model_catalog.reload() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE model_catalog.state SET epoch = epoch + 1, xid = pg_current_xact_id();
    SELECT pg_notify(channel::text, '') FROM model_catalog.state;
$$;
REVOKE ALL ON FUNCTION model_catalog.reload() FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.reload() IS
    'makes every server read the whole view again; call it after changing the view';

-- The trigger function that watch() installs. SECURITY DEFINER, so that a role with write access to the models needs no
-- further privilege. TG_ARGV[0] is the name of the id column.
--
-- Of an UPDATE only the rows that differ are recorded. Rows are compared as text, which works for every type (json has
-- no `=`), and counted, because a table without a key may contain equal rows. `(o.*)` instead of `o`, because `o` would
-- be a column of that name if there is one. Ids are written in order, so that two transactions that change the same
-- models wait for each other instead of deadlocking.
--
-- Only the query for the ids is dynamic, because it is planned on every call; the other statements are planned once per
-- session. For the update of a single row it is a simpler one, whose planning takes half the time. The setting prevents
-- custom plans, which look cheaper for an array of known length, but would be planned on every call, too.
--
-- The notification has no payload: it cannot exceed the size limit, and Postgres sends only one per transaction.
CREATE FUNCTION model_catalog.log_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    touched  text;
    ids      text[];
    settings record;
    rejected boolean;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM model_catalog.reload();
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        touched := format('SELECT n.%1$I::text AS id FROM new_rows n', TG_ARGV[0]);
    ELSIF TG_OP = 'DELETE' THEN
        touched := format('SELECT o.%1$I::text AS id FROM old_rows o', TG_ARGV[0]);
    ELSIF (SELECT count(*) FROM (SELECT FROM old_rows LIMIT 2) o) = 1
      AND (SELECT count(*) FROM (SELECT FROM new_rows LIMIT 2) n) = 1 THEN
        touched := format(
            'SELECT unnest(ARRAY[o.%1$I::text, n.%1$I::text]) AS id FROM old_rows o, new_rows n
             WHERE (o.*)::text IS DISTINCT FROM (n.*)::text',
            TG_ARGV[0]);
    ELSE
        touched := format(
            'SELECT r.id
             FROM (SELECT o.%1$I::text AS id, (o.*)::text AS content, -1 AS number FROM old_rows o
                   UNION ALL SELECT n.%1$I::text, (n.*)::text, 1 FROM new_rows n) r
             GROUP BY r.id, r.content HAVING sum(r.number) <> 0',
            TG_ARGV[0]);
    END IF;

    EXECUTE format('SELECT array_agg(t.id) FROM (%s) t WHERE t.id IS NOT NULL', touched) INTO ids;
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;
    ids := ARRAY(SELECT DISTINCT i.id FROM unnest(ids) i (id) ORDER BY i.id);
    INSERT INTO model_catalog.changes AS c (model_id, xid, changed_at)
    SELECT i.id, pg_current_xact_id(), clock_timestamp() FROM unnest(ids) i (id)
    ON CONFLICT (model_id) DO UPDATE SET xid = excluded.xid, changed_at = excluded.changed_at;
    -- A crash must not lose a change that servers have already read, so the commit must not be asynchronous.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
    SELECT s.strict AS refuse, s.url_schemes, pg_notify(s.channel::text, '') INTO settings FROM model_catalog.state s;
    -- A DELETE is not checked: of several statements that delete a model, the first may leave a row that is rejected.
    IF TG_OP <> 'DELETE' THEN
        IF cardinality(ids) > 100 THEN
            -- A plan for these very ids: it finds them in one pass if the view has no index for them.
            PERFORM set_config('plan_cache_mode', 'force_custom_plan', true);
        END IF;
        -- An assignment, because PERFORM would run a query.
        rejected := model_catalog.report_rejected(ids, settings.refuse, settings.url_schemes);
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.log_change() FROM PUBLIC;

-- Creates the triggers on a table that the view reads, and on its partitions. Call it again after adding a partition;
-- it is safe to run more than once: triggers that exist for the same column are left unchanged and cause no reload. The
-- caller needs the TRIGGER privilege on the table and EXECUTE on log_change().
CREATE FUNCTION model_catalog.watch(source regclass, id_column name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target  regclass;
    created boolean := false;
    event   record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = source AND attname = id_column AND attnum > 0 AND NOT attisdropped) THEN
        RAISE EXCEPTION 'column "%" of table % does not exist', id_column, source
            USING ERRCODE = 'undefined_column',
                  HINT = 'The second argument of watch() is the column that contains the id of the model of a row.';
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
                  AND tgargs = convert_to(id_column::text, getdatabaseencoding()) || '\x00'::bytea);
            EXECUTE format(
                'CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION model_catalog.log_change(%L)',
                event.trigger_name, event.operation, target, event.transition, id_column);
            created := true;
        END LOOP;
    END LOOP;
    -- Changes made before the triggers existed were not recorded.
    IF created THEN
        PERFORM model_catalog.reload();
    END IF;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.watch(regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.watch(regclass, name) IS
    'records every change of a table that the view reads; the second argument is the column with the model id';
