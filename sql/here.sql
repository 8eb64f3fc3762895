-- Where a full load stands: the snapshot of its transaction and the history it belongs to. One row.
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, h.identity AS history, h.standby
FROM model_catalog.history h
