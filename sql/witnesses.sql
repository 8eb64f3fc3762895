-- Whether the database still has what was read at snapshot $1 with the witnesses $2, both text. One row, one boolean.
--
-- A restore can take transactions back and leave the identity of the history as it was: a copy of the data directory,
-- such as a disk snapshot, has the same one. Witnesses are the newest changes at a position: up to four ids of models,
-- in hexadecimal, because their bytes may be invalid in the client's encoding, each with the transaction that made the
-- change, the latest first. Each must still be there, or be followed by a change of the same model by a later transaction
-- or by one that was running at the snapshot. Any other change that was made by a transaction below the snapshot's xmax,
-- but after the witnesses, must be of one that was running at the snapshot.
--
-- The scalar subqueries use one index look-up for each witness, and ORDER BY prevents a sequential scan.
SELECT pg_catalog.count(*) = pg_catalog.count(w.found)
       AND NOT EXISTS (SELECT FROM (
           SELECT FROM model_catalog.changes c
           WHERE c.xid > coalesce(nullif(pg_catalog.split_part(pg_catalog.split_part($2::text, ',', 1), ':', 2), ''),
                                  '0')::xid8
             AND c.xid < pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
             AND c.xid <> ALL (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1::text::pg_snapshot)))
           ORDER BY c.xid LIMIT 1) unexpected)
FROM (
    SELECT (SELECT c.xid FROM model_catalog.changes c
            WHERE c.model_id = pg_catalog.convert_from(pg_catalog.decode(pg_catalog.split_part(witness, ':', 1), 'hex'),
                                                       pg_catalog.getdatabaseencoding())
              AND (c.xid >= pg_catalog.split_part(witness, ':', 2)::xid8
                   OR c.xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1::text::pg_snapshot))))
            LIMIT 1) AS found
    FROM pg_catalog.unnest(pg_catalog.string_to_array($2::text, ',')) witness
) w
