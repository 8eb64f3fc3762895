-- Functions that the view or an underlying view calls and that may read tables: those tables cannot be found in
-- pg_depend. `fix`: how to give a function a search_path, unless it has one or its names are resolved already (its body is
-- SQL in the standard's form).
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
SELECT DISTINCT p.oid::regprocedure::text AS name,
       CASE WHEN p.prosqlbody IS NULL AND l.lanname NOT IN ('c', 'internal')
             AND NOT EXISTS (SELECT FROM unnest(p.proconfig) s WHERE s LIKE 'search\_path=%')
            THEN format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp;',
                        p.oid::regprocedure, p.pronamespace::regnamespace)
       END AS fix
FROM views v
JOIN pg_rewrite w ON w.ev_class = v.oid AND w.ev_type = '1'
JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.refobjid
JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384 AND p.provolatile <> 'i'
