-- What model-catalog keeps in your database: one schema, two small tables, one view, four functions.
-- It touches no table of yours; `model_catalog.watch()` is what puts triggers on one, when you call it.

CREATE SCHEMA IF NOT EXISTS model_catalog;
COMMENT ON SCHEMA model_catalog IS 'model-catalog: what the catalog servers read, and the log of what changed';

-- One row per model that ever changed, written in the transaction of the change itself. It needs no pruning.
CREATE TABLE model_catalog.changes (
    model_id   text        PRIMARY KEY,
    xid        xid8        NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX changes_xid_idx ON model_catalog.changes (xid);
COMMENT ON TABLE model_catalog.changes IS 'the last transaction that changed each model; written by triggers only';

-- One row. The epoch moves when everything may have changed at once; servers then read the whole view again.
CREATE TABLE model_catalog.state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    bigint  NOT NULL DEFAULT 1,
    channel  name    NOT NULL DEFAULT 'model_catalog'
);
INSERT INTO model_catalog.state DEFAULT VALUES;
COMMENT ON TABLE model_catalog.state IS 'the epoch (see reload()) and the channel that changes are announced on';

-- Which history of the world this is. Transaction ids of one history mean nothing in another: after a failover
-- they may be used a second time, and a copy of a database goes on from the same number.
-- The timeline comes from the WAL position: the control file's own lags behind after a promotion.
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
COMMENT ON VIEW model_catalog.history IS 'identity of the history that transaction ids belong to; a standby has no timeline';

-- Rings the doorbell. No payload, so nothing is ever too long, and a transaction's many rings fold into one.
CREATE FUNCTION model_catalog.ring() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_catalog.pg_notify(channel::text, '') FROM model_catalog.state $$;
REVOKE ALL ON FUNCTION model_catalog.ring() FROM PUBLIC;

CREATE FUNCTION model_catalog.reload() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE model_catalog.state SET epoch = epoch + 1;
    SELECT model_catalog.ring();
$$;
REVOKE ALL ON FUNCTION model_catalog.reload() FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.reload() IS 'makes every server read the whole view again; call it after you changed the view';

-- The trigger behind watch(). It runs as its owner, so that a role that may write models needs no other right.
-- TG_ARGV[0] is the id column. Rows are compared as text because that works for every type (json has no `=`),
-- and with ALL, because a table without a key may hold the same row twice; `(o.*)` and not `o`, which would be a column
-- of that name where there is one. Ids are written in order, so that two
-- transactions over the same models wait for each other instead of deadlocking.
CREATE FUNCTION model_catalog.log_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    touched text;
    logged  bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM model_catalog.reload();
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        touched := format('SELECT n.%1$I::text AS id FROM new_rows n', TG_ARGV[0]);
    ELSIF TG_OP = 'DELETE' THEN
        touched := format('SELECT o.%1$I::text AS id FROM old_rows o', TG_ARGV[0]);
    ELSE
        touched := format(
            '(SELECT o.%1$I::text AS id, (o.*)::text FROM old_rows o
              EXCEPT ALL SELECT n.%1$I::text, (n.*)::text FROM new_rows n)
             UNION ALL
             (SELECT n.%1$I::text AS id, (n.*)::text FROM new_rows n
              EXCEPT ALL SELECT o.%1$I::text, (o.*)::text FROM old_rows o)',
            TG_ARGV[0]);
    END IF;

    EXECUTE format(
        'INSERT INTO model_catalog.changes AS c (model_id, xid, changed_at)
         SELECT t.id, pg_current_xact_id(), clock_timestamp()
         FROM (SELECT DISTINCT u.id FROM (%s) u WHERE u.id IS NOT NULL ORDER BY u.id) t
         ON CONFLICT (model_id) DO UPDATE SET xid = excluded.xid, changed_at = excluded.changed_at',
        touched);
    GET DIAGNOSTICS logged = ROW_COUNT;
    IF logged > 0 THEN
        -- What servers have seen must not be taken back by a crash, so such a commit is never asynchronous.
        IF current_setting('synchronous_commit') = 'off' THEN
            PERFORM set_config('synchronous_commit', 'local', true);
        END IF;
        PERFORM model_catalog.ring();
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.log_change() FROM PUBLIC;

-- Puts the triggers on a source table of the view and on its partitions. Twice is harmless: where they are already
-- there for the same column, nothing is changed and nothing is reloaded. The caller needs the TRIGGER right on the
-- table and EXECUTE on log_change(), which it names.
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
        RAISE EXCEPTION 'table % has no column "%"', source, id_column
            USING HINT = 'The second argument of watch() is the column that holds the id of the model a row belongs to.';
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
            EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', event.trigger_name, target);
            EXECUTE format(
                'CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION model_catalog.log_change(%L)',
                event.trigger_name, event.operation, target, event.transition, id_column);
            created := true;
        END LOOP;
    END LOOP;
    -- What was written before the triggers were there has rung no bell.
    IF created THEN
        PERFORM model_catalog.reload();
    END IF;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.watch(regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.watch(regclass, name) IS 'announces every change of this table; the second argument is its column with the model id';
