-- The delta: every model that has changed since snapshot $1, provided that the database still has history $2. Returns
-- at least one row. Parameters, all text: $1 a pg_snapshot; $2 its history; $3 the largest number of changes to return:
-- if there are more, only `many` says so; $4 whether to look up the rows of the view, or to return only the ids. Columns:
-- see src/postgres/rows.rs. Witnesses: see witnesses.sql. On a hot standby it is delta_standby.sql; both look up the rows
-- of the view alike.
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
-- The order by xid makes the index on xid the better one. Where `changes` was empty when the plan was made, all of the
-- primary key would cost as little to read, whose second column is xid. A part that is cut off by its limit is more than
-- `few` may be.
--
-- Several transactions may have changed the same model: it is read once.
WITH here AS MATERIALIZED (
    SELECT pg_catalog.pg_current_snapshot() AS snapshot, pg_catalog.clock_timestamp() AS started,
           h.identity AS history, h.identity = $2::text AS same_history,
           (SELECT pg_catalog.string_agg(pg_catalog.encode(pg_catalog.convert_to(
                       c.model_id, pg_catalog.getdatabaseencoding()), 'hex') || ':' || c.xid, ',' ORDER BY c.xid DESC)
            FROM (SELECT changes.model_id, changes.xid FROM model_catalog.changes
                  WHERE changes.xid < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
                  ORDER BY changes.xid DESC LIMIT 4) c) AS witnesses
    FROM model_catalog.history h
), logged AS MATERIALIZED (
    (SELECT c.model_id, c.changed_at
     FROM model_catalog.changes c
     WHERE c.xid >= pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
       AND c.xid < (SELECT pg_catalog.pg_snapshot_xmax(snapshot) FROM here)
       AND (SELECT same_history FROM here)
     ORDER BY c.xid LIMIT $3::text::bigint + 1)
    UNION ALL
    SELECT c.model_id, c.changed_at
    FROM pg_catalog.pg_snapshot_xip($1::text::pg_snapshot) AS running (xid)
    CROSS JOIN LATERAL (
        SELECT * FROM model_catalog.changes WHERE changes.xid >= running.xid AND changes.xid <= running.xid
        ORDER BY changes.xid LIMIT $3::text::bigint + 1
    ) c
    WHERE (SELECT same_history FROM here)
), few AS MATERIALIZED (
    -- `logged` is evaluated no further than this, and planned without regard to it.
    SELECT * FROM logged LIMIT $3::text::bigint + 1
), many AS MATERIALIZED (
    SELECT pg_catalog.count(*) > $3::text::bigint AS is_true FROM few
), changed AS MATERIALIZED (
    SELECT f.model_id, pg_catalog.max(f.changed_at) AS changed_at
    FROM few f
    WHERE NOT (SELECT is_true FROM many)
    GROUP BY f.model_id
)
SELECT here.snapshot::text, here.history, here.witnesses,
       many.is_true AS many,
       (extract(epoch FROM pg_catalog.clock_timestamp() - here.started))::float8 AS elapsed_seconds,
       changed.model_id,
       (extract(epoch FROM pg_catalog.clock_timestamp() - changed.changed_at))::float8 AS age_seconds,
       e.id, e.name, e.download_url, e.file_size_gb::text, e.hash, e.auth_required, e.auth_provider, e.save_path,
       e.dependencies::text, e.description, e.mirrors
FROM here
CROSS JOIN many
CROSS JOIN (SELECT NULL::jsonb AS mirrors) none
LEFT JOIN changed ON true
LEFT JOIN LATERAL (
    SELECT entries.id, entries.name, entries.download_url, entries.file_size_gb, entries.hash, entries.auth_required,
           entries.auth_provider, entries.save_path, entries.dependencies, entries.description,
           pg_catalog.to_jsonb(mirrors)::text AS mirrors
    FROM model_catalog.entries
    -- The index has the collation of the column, under which another id may be equal.
    WHERE entries.id = changed.model_id AND entries.id COLLATE "C" = changed.model_id COLLATE "C"
      AND $4::text = 'true' OFFSET 0
) e ON true
