-- The position of a full load: the snapshot of its transaction and the history that the snapshot belongs to. One row.
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, h.identity AS history, h.standby
FROM model_catalog.history h
