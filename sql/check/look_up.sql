-- The plan of the lookup that the delta query makes for each changed model. Sequential scans are disabled, because for
-- a small table the planner prefers one even if an index exists. So are joins that read all of a table, and copies of it:
-- a nested loop shows whether an index finds the rows to join.
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL enable_material = off;
SET LOCAL enable_memoize = off;
SET LOCAL max_parallel_workers_per_gather = 0;
EXPLAIN (VERBOSE, FORMAT JSON) SELECT * FROM model_catalog.entries WHERE entries.id = 'model-catalog check' OFFSET 0
