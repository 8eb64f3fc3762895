-- The servers that follow this database, for the status page: those that are behind first. Columns: name, revision (NULL
-- before the first read), whether it serves every committed change, and the number of all servers.
SELECT name, revision, in_step, count(*) OVER () AS total
FROM model_catalog.fleet
ORDER BY in_step, name, pid
LIMIT 100
