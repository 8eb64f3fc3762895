-- The look-up that the delta makes for each changed model, planned as if reading a whole table were next to forbidden:
-- with few rows the planner would read them all, whatever indexes there are.
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL max_parallel_workers_per_gather = 0;
EXPLAIN (VERBOSE, FORMAT JSON) SELECT * FROM model_catalog.entries WHERE entries.id = 'model-catalog check' OFFSET 0
