-- The delta on a hot standby: every model that has changed in one of the given ranges of transaction ids, provided that
-- the database still has history $3. Returns at least one row. Parameters, all text: $1 and $2 xid8[], the first ids of
-- the ranges and the ids after their ends (NULL = no end); $3 the history; $4 and $5 as $3 and $4 in delta.sql. Columns:
-- those of delta.sql, then the transaction of the change and the state of replay; see src/postgres/rows.rs.
--
-- A snapshot taken on a standby does not list the transactions that were running, but all below its xmin had ended. So
-- the ranges cover everything from the last snapshot's xmin on, except for transactions whose changes were read already:
-- these are omitted as gaps between index ranges, not by a condition on each row, so that one forgotten transaction on
-- the primary does not make each read visit everything that changed since it began. The order and the limits are as in
-- delta.sql.
--
-- Several transactions may have changed the same model: it is read once, with the youngest of them. The others are read
-- again by the next delta, which does no harm.
--
-- There are no witnesses: a server reads everything after each connect to a standby.
WITH here AS MATERIALIZED (
    SELECT pg_catalog.pg_current_snapshot() AS snapshot, pg_catalog.clock_timestamp() AS started,
           h.identity AS history, h.identity = $3::text AS same_history
    FROM model_catalog.history h
), replay AS MATERIALIZED (
    SELECT (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint AS lsn,
           extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::float8 AS lag,
           -- After a restart of the receiver, the position received can be below the one replayed.
           coalesce(pg_catalog.pg_last_wal_receive_lsn() <= pg_catalog.pg_last_wal_replay_lsn(), false)
               AND EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver) AS caught_up
), logged AS MATERIALIZED (
    SELECT c.model_id, c.changed_at, c.xid
    FROM ROWS FROM (pg_catalog.unnest($1::text::xid8[]), pg_catalog.unnest($2::text::xid8[])) AS unread (low, high)
    CROSS JOIN LATERAL (
        SELECT * FROM model_catalog.changes
        WHERE changes.xid >= unread.low
          AND changes.xid < least(unread.high, (SELECT pg_catalog.pg_snapshot_xmax(snapshot) FROM here))
        ORDER BY changes.xid LIMIT $4::text::bigint + 1
    ) c
    WHERE (SELECT same_history FROM here)
), few AS MATERIALIZED (
    SELECT * FROM logged LIMIT $4::text::bigint + 1
), many AS MATERIALIZED (
    SELECT pg_catalog.count(*) > $4::text::bigint AS is_true FROM few
), changed AS MATERIALIZED (
    SELECT f.model_id, pg_catalog.max(f.changed_at) AS changed_at, pg_catalog.max(f.xid::text::bigint) AS xid
    FROM few f
    WHERE NOT (SELECT is_true FROM many)
    GROUP BY f.model_id
)
SELECT here.snapshot::text, here.history, '' AS witnesses,
       many.is_true AS many,
       (extract(epoch FROM pg_catalog.clock_timestamp() - here.started))::float8 AS elapsed_seconds,
       changed.model_id,
       (extract(epoch FROM pg_catalog.clock_timestamp() - changed.changed_at))::float8 AS age_seconds,
       e.id, e.name, e.download_url, e.file_size_gb::text, e.hash, e.auth_required, e.auth_provider, e.save_path,
       e.dependencies::text, e.description, e.mirrors,
       changed.xid,
       replay.lsn, replay.lag, replay.caught_up
FROM here
CROSS JOIN replay
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
      AND $5::text = 'true' OFFSET 0
) e ON true
