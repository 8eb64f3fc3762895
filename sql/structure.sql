-- A fingerprint of what the view depends on besides the rows of tables, read at each heartbeat. If it differs from the
-- last one, changes may have been missed. One row, one column, text; NULL if there is no view.
--
-- It covers the definitions of the view, of the views below it and of the functions that they call (for functions with
-- a body in the standard's form also what these use), the tables with their names, partitions and child tables, row
-- security, the values of their enums, a refresh of a materialized view, and the triggers of watch().
--
-- A catalog row's xmin is the transaction that wrote this version of it. It also tells of what was undone: triggers that
-- were disabled and enabled again did not record the changes in between. That of pg_class is not used, because TRUNCATE
-- and VACUUM FULL write these rows. VACUUM and ANALYZE change nothing that is read here. (Not md5(), which a server in
-- FIPS mode refuses.)
WITH RECURSIVE objects (class, oid) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, c.oid
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'model_catalog' AND c.relname = 'entries'
    UNION
    SELECT d.refclassid, d.refobjid
    FROM objects o
    CROSS JOIN LATERAL (
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_rewrite w ON w.ev_class = c.oid AND w.ev_type = '1'
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = w.oid
        WHERE o.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = o.oid AND c.relkind = 'v'
        UNION ALL
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_depend d
        WHERE o.class = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.classid = o.class AND d.objid = o.oid
        UNION ALL
        SELECT o.class, i.inhrelid
        FROM pg_catalog.pg_inherits i
        WHERE o.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND i.inhparent = o.oid
    ) d
    WHERE d.refclassid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
), relations AS (
    SELECT c.oid, c.relkind, c.relnamespace, c.relname, c.relowner, c.relrowsecurity, c.relforcerowsecurity,
           c.relispartition,
           CASE c.relkind WHEN 'v' THEN c.reloptions::text WHEN 'm' THEN c.relfilenode::text END AS state
    FROM objects o
    JOIN pg_catalog.pg_class c ON c.oid = o.oid
    WHERE o.class = 'pg_catalog.pg_class'::pg_catalog.regclass
)
SELECT pg_catalog.to_hex(pg_catalog.hashtextextended(pg_catalog.string_agg(s.state, ';' ORDER BY s.state COLLATE "C"), 0))
FROM (
    SELECT r::text AS state FROM relations r
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'rule', w.oid, w.xmin)
    FROM relations r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.oid
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'function', p.oid, p.xmin)
    FROM objects o JOIN pg_catalog.pg_proc p ON p.oid = o.oid
    WHERE o.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'child', i.inhrelid, i.inhparent)
    FROM relations r JOIN pg_catalog.pg_inherits i ON i.inhparent = r.oid
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'policy', p.oid, p.xmin)
    FROM relations r JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'trigger', t.oid, t.xmin)
    FROM relations r
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid
    JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'model_catalog' AND NOT t.tgisinternal
    UNION ALL
    SELECT DISTINCT pg_catalog.concat_ws(' ', 'enum', e.oid, e.xmin)
    FROM relations r
    JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT r.relispartition
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    -- The type itself, or that of the elements of an array.
    JOIN pg_catalog.pg_enum e ON e.enumtypid = coalesce(nullif(t.typelem, 0), t.oid)
) s
