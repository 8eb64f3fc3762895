-- Has it arrived? `model_catalog.fleet` shows the servers that are connected and how far each has come,
-- `model_catalog.wait_for_fleet()` waits until all of them serve a transaction. Nothing here writes.
--
-- A server may only read, so it says where it stands in the one place that every session may set and everybody may see,
-- its application_name in pg_stat_activity, of which Postgres keeps 63 bytes:
--
--     model-catalog NAME REVISION XMAX[-D...][+N]        e.g.  model-catalog gpu-eu-1 0d4527ea5855533c 1234567-3
--
-- REVISION is what the server's answers carry as Catalog-Revision. The rest is the pg_snapshot of its last read: every
-- transaction below XMAX is served, but for those that were running at that moment, which are XMAX-D for each D (here
-- 1234564), the youngest first, and N older ones that there was no room to name. A server that has read nothing yet
-- shows its name alone. It changes this after every read, at the latest every CATALOG_POLL_INTERVAL.

-- What reload() changes is no model, so its transaction is kept here.
ALTER TABLE model_catalog.state ADD COLUMN xid xid8 NOT NULL DEFAULT '0';
COMMENT ON COLUMN model_catalog.state.xid IS 'the transaction that moved the epoch last';

CREATE OR REPLACE FUNCTION model_catalog.reload() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE model_catalog.state SET epoch = epoch + 1, xid = pg_current_xact_id();
    SELECT model_catalog.ring();
$$;

-- One row a server. It is in step if no change that is committed now is one it has not read; which are the same two
-- ranges of `changes` that its next read would ask for. With transactions that were not named, that can't be told from
-- `changes` alone, and it counts as in step once it has read as much as this very statement sees (see below, `ended`).
--
-- Everybody may see the application_name of other sessions; backend_type and client_addr show to members of
-- pg_read_all_stats only, and are NULL to others. The backend_type keeps out the workers of a parallel query, which bear
-- the name of their leader. Names are cut to numbers that can be cast, for any session can call itself anything.
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
COMMENT ON VIEW model_catalog.fleet IS 'the connected servers: below synced_xid all is served but running_xids and older_running more';

-- Waits until every connected server serves transaction `xid`, and gives their number. After `timeout` it raises an
-- error whose DETAIL names the ones that are behind.
--
-- When does a server serve x? When x had ended at the moment the server read. "x < XMAX" alone is not enough: x may have
-- been running just then. Waiting for the lowest transaction that was running (xmin) to pass x would be safe, but one
-- forgotten transaction anywhere in the cluster would hold it back for hours. So, x being committed, it is served if
--   x < XMAX, and x is none of the transactions that were running, of which
--   - all are named; or
--   - those not named are older than all that are, and x is younger than one that is named; or
--   - the server has read as late as this function began, or later: moments of one history are ordered by how many
--     transactions had ended by then, and that is XMAX less the number that were running.
-- Only the last asks for one more read by the server, at its next bell or heartbeat, and only where more transactions
-- wrote at once than fit into the name.
--
-- Who calls it needs SELECT on model_catalog.fleet, too.
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
        RAISE EXCEPTION 'wait_for_fleet() was given no %', CASE WHEN xid IS NULL THEN 'transaction' ELSE 'timeout' END
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF status = 'in progress' THEN
        RAISE EXCEPTION 'transaction % is still in progress', xid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Servers see it when it is committed: COMMIT first, then call wait_for_fleet() on its own.';
    ELSIF status = 'aborted' THEN
        RAISE EXCEPTION 'transaction % was rolled back, no server will ever serve it', xid
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    began := pg_current_snapshot();
    IF NOT pg_visible_in_snapshot(xid, began) THEN
        RAISE EXCEPTION 'transaction % was committed after this transaction began', xid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Call wait_for_fleet() on its own, or at the isolation level READ COMMITTED.';
    END IF;
    ended := pg_snapshot_xmax(began)::text::bigint - (SELECT count(*) FROM pg_snapshot_xip(began));
    LOOP
        -- Else the first look would be kept until this transaction ends.
        PERFORM pg_stat_clear_snapshot();
        SELECT count(*),
               string_agg(format('%s (pid %s, %s)', f.name, f.pid, coalesce('at ' || f.synced_xid, 'nothing read yet')),
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
            RAISE WARNING 'no server is connected to this database, so none was waited for';
        END IF;
        IF behind IS NULL THEN
            RETURN replicas;
        ELSIF clock_timestamp() >= deadline THEN
            RAISE EXCEPTION 'not every server serves transaction % after %', xid, timeout
                USING ERRCODE = 'lock_not_available', DETAIL = 'Behind: ' || behind || '.';
        END IF;
        PERFORM pg_sleep(least(pause, greatest(extract(epoch FROM deadline - clock_timestamp()), 0)));
        pause := least(pause * 2, 0.05);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION model_catalog.wait_for_fleet(xid8, interval) FROM PUBLIC;
COMMENT ON FUNCTION model_catalog.wait_for_fleet(xid8, interval) IS
    'returns once every connected server serves this transaction; an error names those that do not in time';
