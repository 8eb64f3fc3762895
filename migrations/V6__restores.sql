-- A history is also identified by the object ids of our tables, which change when they are dropped and restored: a dump
-- that is restored into the same database keeps everything else that identified it.
--
-- `tag` stands for the history where there is no space for its identity: three letters of its digest, which servers
-- append to XMAX in their application_name (see V2):
--
--     model-catalog NAME REVISION XMAXtag[-D...][+N]     for example  model-catalog gpu-eu-1 0d4527ea5855533c 1234567qfx-3
--
-- Servers without a tag are older than this migration.
CREATE OR REPLACE VIEW model_catalog.history AS
WITH parts AS MATERIALIZED (
    SELECT (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c) AS system_identifier,
           CASE WHEN NOT pg_catalog.pg_is_in_recovery()
                THEN left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
           END AS timeline,
           (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS database,
           (SELECT s.epoch FROM model_catalog.state s) + (SELECT pg_catalog.count(*) FROM model_catalog.reloads) AS epoch,
           pg_catalog.pg_is_in_recovery() AS standby,
           pg_catalog.concat_ws('.', pg_catalog.to_regclass('model_catalog.changes')::oid,
                                pg_catalog.to_regclass('model_catalog.state')::oid) AS tables
), identified AS (
    SELECT pg_catalog.concat_ws('/', p.system_identifier, coalesce(p.timeline, 'standby'), p.database, p.epoch, p.tables)
               AS identity,
           p.*
    FROM parts p
)
SELECT i.*,
       (SELECT pg_catalog.string_agg(pg_catalog.chr(97 + pg_catalog.get_byte(d.digest, n) % 26), '' ORDER BY n)
        FROM pg_catalog.sha256(pg_catalog.convert_to(i.identity, 'UTF8')) d (digest), pg_catalog.generate_series(0, 2) n) AS tag
FROM identified i;
COMMENT ON VIEW model_catalog.history IS 'history that transaction ids belong to; a standby has no timeline';

-- As in V4, but a position in another history counts as none.
CREATE OR REPLACE VIEW model_catalog.fleet AS
WITH now AS MATERIALIZED (
    SELECT pg_catalog.pg_snapshot_xmax(s) AS xmax,
           pg_catalog.pg_snapshot_xmax(s)::text::bigint
               - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_snapshot_xip(s)) AS ended,
           (SELECT h.tag FROM model_catalog.history h) AS tag
    FROM pg_catalog.pg_current_snapshot() s
), session AS (
    SELECT a.pid, a.usename, a.client_addr, n.part[1] AS name, n.part[2] AS revision,
           CASE WHEN n.part[4] IS NULL OR n.part[4] = now.tag THEN n.part END AS part
    FROM now
    CROSS JOIN pg_catalog.pg_stat_activity a
    CROSS JOIN LATERAL pg_catalog.regexp_match(
        a.application_name,
        '^model-catalog ([!-~]+)(?: ([0-9a-f]{16}) ([0-9]{1,18})([a-z]{3})?((?:-[0-9]{1,18})*)(?:[+]([0-9]{1,9}))?)?$') AS n(part)
    WHERE n.part IS NOT NULL
      AND a.datname = pg_catalog.current_database()
      AND coalesce(a.backend_type, 'client backend') = 'client backend'
), replica AS (
    SELECT s.pid, s.usename, s.client_addr, s.name, s.revision, s.part[3]::xid8 AS synced_xid,
           CASE WHEN s.part[3] IS NOT NULL THEN ARRAY(
               SELECT greatest(s.part[3]::bigint - d::bigint, 0)::text::xid8
               FROM pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.substr(s.part[5], 2), '-')) d)
           END AS running_xids,
           CASE WHEN s.part[3] IS NOT NULL THEN coalesce(s.part[6]::integer, 0) END AS older_running
    FROM session s
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
