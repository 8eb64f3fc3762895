-- The position of a full read: the snapshot of its transaction, the history that the snapshot belongs to, and its
-- witnesses (see witnesses.sql). One row.
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, h.identity AS history,
       (SELECT pg_catalog.string_agg(pg_catalog.encode(pg_catalog.convert_to(
                   c.model_id, pg_catalog.getdatabaseencoding()), 'hex') || ':' || c.xid, ',' ORDER BY c.xid DESC)
        FROM (SELECT changes.model_id, changes.xid FROM model_catalog.changes
              WHERE changes.xid < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
              ORDER BY changes.xid DESC LIMIT 4) c) AS witnesses
FROM model_catalog.history h
