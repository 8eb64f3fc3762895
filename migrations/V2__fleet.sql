-- The servers that are connected, and how far each of them has read. `model_catalog.fleet` shows them, one row per
-- server; `model_catalog.wait_for_fleet()` waits until all of them serve a given transaction. Neither writes anything.
--
-- A server has read-only access, so it publishes its position as its application_name, which every session may set and
-- every role can see in pg_stat_activity. Postgres truncates it to 63 bytes. Its format:
--
--     model-catalog NAME REVISION XMAX[-D...][+N]        for example  model-catalog gpu-eu-1 0d4527ea5855533c 1234567-3
--
-- REVISION is the value of the header Catalog-Revision in the server's responses. The rest is the pg_snapshot of its
-- last read: the server serves every transaction below XMAX except those that were running at that time. These are
-- XMAX-D for each D (here 1234564), the youngest first, and N older ones for which there was no space. A server that
-- has not read anything yet has only its name there. The value is updated after every read, at least every
-- CATALOG_POLL_INTERVAL.

-- A server is in step if it has read every change that is committed now. The conditions on `changes` are the two ranges
-- that its next read would use. If the ids of some running transactions did not fit, `changes` alone cannot tell, and
-- the server counts as in step once it has read as late as this statement's own snapshot (see wait_for_fleet()).
--
-- Every role can see the application_name of other sessions, but backend_type and client_addr only with the privileges
-- of pg_read_all_stats; they are NULL otherwise. The condition on backend_type excludes parallel workers, which have
-- the application_name of their leader. The pattern limits numbers to lengths that can be cast, because any session can
-- set any application_name.
CREATE VIEW model_catalog.fleet AS
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
        '^model-catalog ([!-~]+)(?: ([0-9a-f]{16}) (\d{1,18})((?:-\d{1,18})*)(?:\+(\d{1,9}))?)?$') AS n(part)
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
COMMENT ON VIEW model_catalog.fleet IS
    'connected servers; each serves all transactions below synced_xid but running_xids and older_running older ones';

-- Waits until every connected server serves transaction `xid`, and returns the number of servers. After `timeout` it
-- raises an error whose DETAIL names the servers that are behind. The caller also needs SELECT on model_catalog.fleet.
--
-- A server serves xid if xid had ended when the server read. `xid < XMAX` is not sufficient, because xid may have been
-- running at that time. Waiting until the oldest running transaction (xmin) has passed xid would be correct, but one
-- forgotten transaction anywhere in the cluster would block it for hours. So a committed xid is served if xid < XMAX,
-- xid is not one of the running transactions that are named, and one of these holds:
--   - all running transactions are named;
--   - xid is younger than one that is named (those that are not named are older than all that are);
--   - the server read when this function started, or later. Snapshots of one history are ordered by the number of
--     transactions that had ended, which is XMAX minus the number of running ones.
-- Only the last one may need another read by the server, at its next notification or poll, and only if there were more
-- concurrent writers than fit into the application_name.
CREATE FUNCTION model_catalog.wait_for_fleet(xid xid8, timeout interval DEFAULT '30 seconds') RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + timeout;
    status   text := pg_xact_status(xid);
    began    pg_snapshot;
    ended    bigint;
    replicas bigint;
    behind   text;
    pause    float8 := 0.002;
BEGIN
    IF xid IS NULL OR timeout IS NULL THEN
        RAISE EXCEPTION 'argument "%" of wait_for_fleet() must not be null',
                        CASE WHEN xid IS NULL THEN 'xid' ELSE 'timeout' END
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF status = 'in progress' THEN
        RAISE EXCEPTION 'transaction % is still in progress', xid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'COMMIT the transaction first, then call wait_for_fleet() in a statement of its own.';
    ELSIF status = 'aborted' THEN
        RAISE EXCEPTION 'transaction % was rolled back', xid
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'No server will serve its changes.';
    END IF;
    began := pg_current_snapshot();
    IF NOT pg_visible_in_snapshot(xid, began) THEN
        RAISE EXCEPTION 'transaction % was committed after the snapshot of the current transaction was taken', xid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Call wait_for_fleet() outside of a transaction block, or use READ COMMITTED.';
    END IF;
    ended := pg_snapshot_xmax(began)::text::bigint - (SELECT count(*) FROM pg_snapshot_xip(began));
    LOOP
        -- Otherwise the first read of pg_stat_activity is cached until the end of the transaction.
        PERFORM pg_stat_clear_snapshot();
        SELECT count(*),
               string_agg(format('%s (pid %s, %s)', f.name, f.pid, coalesce('at ' || f.synced_xid, 'has not read anything yet')),
                          ', ' ORDER BY f.name, f.pid)
                   FILTER (WHERE (wait_for_fleet.xid < f.synced_xid
                                  AND wait_for_fleet.xid <> ALL (f.running_xids)
                                  AND (f.older_running = 0
                                       OR wait_for_fleet.xid > ANY (f.running_xids)
                                       OR f.synced_xid::text::bigint - cardinality(f.running_xids) - f.older_running
                                          >= ended)) IS NOT TRUE)
        INTO replicas, behind
        FROM model_catalog.fleet f;
        IF replicas = 0 THEN
            RAISE WARNING 'no model-catalog server is connected to this database';
        END IF;
        IF behind IS NULL THEN
            RETURN replicas;
        ELSIF clock_timestamp() >= deadline THEN
            RAISE EXCEPTION 'not every server serves transaction % within %', xid, timeout
                USING ERRCODE = 'lock_not_available', DETAIL = 'Behind: ' || behind || '.';
        END IF;
        PERFORM pg_sleep(least(pause, greatest(extract(epoch FROM deadline - clock_timestamp()), 0)));
        pause := least(pause * 2, 0.05);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.wait_for_fleet(xid8, interval) FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.wait_for_fleet(xid8, interval) IS
    'waits until every connected server serves a transaction; raises an error that names the servers that are behind';
