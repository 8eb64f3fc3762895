-- Functions that the view or an underlying view calls and that may read tables: those tables cannot be found in
-- pg_depend.
WITH RECURSIVE views (oid) AS (
    SELECT 'model_catalog.entries'::regclass::oid
    UNION
    SELECT d.refobjid
    FROM views v
    JOIN pg_class c ON c.oid = v.oid AND c.relkind = 'v'
    JOIN pg_rewrite w ON w.ev_class = v.oid AND w.ev_type = '1'
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
)
SELECT DISTINCT p.oid::regprocedure::text AS name
FROM views v
JOIN pg_rewrite w ON w.ev_class = v.oid AND w.ev_type = '1'
JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.refobjid
WHERE p.oid >= 16384 AND p.provolatile <> 'i'
