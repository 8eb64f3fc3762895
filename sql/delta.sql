-- The delta: every model that has changed since snapshot $1, provided that the database still has history $2. Returns
-- at least one row. Parameters: $1 text (a pg_snapshot), $2 text (its history). Columns: see src/postgres/rows.rs.
--
-- `mirrors` is an optional column of the view; see entries.sql.
--
-- A model has changed since $1 if its change is visible now and was made by a transaction that started after $1 or was
-- still running then. These are index ranges on purpose: `NOT pg_visible_in_snapshot(...)` would read every change since
-- the oldest open transaction. OFFSET 0 prevents a lateral subquery from being flattened into a join, which could scan
-- the whole table. The upper bound excludes rows of a restored dump whose xid lies in this history's future.
--
-- A transaction that was running is a range of one id, and not `xid = ...`: after a statement that changed every model,
-- the statistics know a single xid, and the planner would expect an equality to match, and scan, the whole table.
--
-- Several transactions may have changed the same model: it is read once.
WITH here AS MATERIALIZED (
    SELECT pg_catalog.pg_current_snapshot() AS snapshot, h.identity AS history FROM model_catalog.history h
), logged AS (
    SELECT c.model_id, c.changed_at
    FROM model_catalog.changes c
    WHERE c.xid >= pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
      AND c.xid < (SELECT pg_catalog.pg_snapshot_xmax(snapshot) FROM here)
      AND (SELECT history FROM here) = $2::text
    UNION ALL
    SELECT c.model_id, c.changed_at
    FROM pg_catalog.pg_snapshot_xip($1::text::pg_snapshot) AS running (xid)
    CROSS JOIN LATERAL (
        SELECT * FROM model_catalog.changes WHERE changes.xid >= running.xid AND changes.xid <= running.xid OFFSET 0
    ) c
    WHERE (SELECT history FROM here) = $2::text
), changed AS (
    SELECT l.model_id, pg_catalog.max(l.changed_at) AS changed_at FROM logged l GROUP BY l.model_id
)
SELECT here.snapshot::text,
       here.history,
       changed.model_id,
       (extract(epoch FROM pg_catalog.clock_timestamp() - changed.changed_at))::float8 AS age_seconds,
       e.id, e.name, e.download_url, e.file_size_gb::text, e.hash, e.auth_required, e.auth_provider, e.save_path,
       e.dependencies::text, e.description, e.mirrors
FROM here
CROSS JOIN (SELECT NULL::jsonb AS mirrors) none
LEFT JOIN changed ON true
LEFT JOIN LATERAL (
    SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash, entries.auth_required,
           entries.auth_provider, entries.save_path, entries.dependencies, entries.description,
           pg_catalog.to_jsonb(mirrors)::text AS mirrors
    FROM model_catalog.entries
    -- The index has the collation of the column, under which another id may be equal.
    WHERE entries.id = changed.model_id AND entries.id COLLATE "C" = changed.model_id COLLATE "C" OFFSET 0
) e ON true
