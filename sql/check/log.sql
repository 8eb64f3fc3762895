-- Rows in `changes` (of the first million), the number of models that they are of, and the rows in `reloads`.
SELECT c.entries, c.models, (SELECT h.epoch FROM model_catalog.history h) - s.epoch AS reloads
FROM model_catalog.state s
CROSS JOIN (
    SELECT count(*) AS entries, count(DISTINCT l.model_id COLLATE "C") AS models
    FROM (SELECT c.model_id FROM model_catalog.changes c LIMIT 1000000) l
) c
