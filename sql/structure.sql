-- A fingerprint of what the view depends on besides the rows of tables, read at each heartbeat. If it differs from the
-- last one, changes may have been missed. One row, one column, text; NULL if there is no view.
--
-- It covers the definitions of the view, of the views below it and of the functions that they call (for functions with
-- a body in the standard's form also what these use), the tables with their names, partitions and child tables, row
-- security, the values of their enums, a refresh of a materialized view, and the triggers of watch().
--
-- A catalog row's xmin is the transaction that wrote this version of it. It also tells of what was undone: triggers that
-- were disabled and enabled again did not record the changes in between. That of pg_class is not used, because TRUNCATE
-- and VACUUM FULL write these rows. VACUUM and ANALYZE change nothing that is read here.
--
-- Each row is hashed as it is, with a seed for its kind: hashing its text takes three times as long with a hundred
-- partitions. bit_xor needs no order, and no row occurs twice. (Not md5(), which a server in FIPS mode refuses.) A table
-- or view is looked up once, where it is found: `kind` is NULL for functions. OFFSET 0 keeps that a look-up.
WITH RECURSIVE objects (class, oid, kind, has_children, is_partition, hash) AS (
    -- The schema, so that the view is looked up like all others.
    SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass::oid, n.oid, NULL::"char", false, false, NULL::bigint
    FROM pg_catalog.pg_namespace n WHERE n.nspname = 'model_catalog'
    UNION
    SELECT d.class, d.oid, c.relkind, c.relhassubclass, c.relispartition, c.hash
    FROM objects o
    CROSS JOIN LATERAL (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, c.oid
        FROM pg_catalog.pg_class c
        WHERE o.class = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND c.relnamespace = o.oid AND c.relname = 'entries'
        UNION ALL
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_rewrite w
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = w.oid
        WHERE o.kind = 'v' AND w.ev_class = o.oid AND w.ev_type = '1'
        UNION ALL
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_depend d
        WHERE o.class = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.classid = o.class AND d.objid = o.oid
        UNION ALL
        SELECT o.class, i.inhrelid FROM pg_catalog.pg_inherits i WHERE o.has_children AND i.inhparent = o.oid
    ) d (class, oid)
    LEFT JOIN LATERAL (
        SELECT c.relkind, c.relhassubclass, c.relispartition,
               pg_catalog.hash_record_extended(
                   ROW (c.oid, c.relkind, c.relnamespace, c.relname, c.relowner, c.relrowsecurity, c.relforcerowsecurity,
                        c.relispartition,
                        CASE c.relkind WHEN 'v' THEN c.reloptions::text WHEN 'm' THEN c.relfilenode::text END), 0) AS hash
        FROM pg_catalog.pg_class c
        WHERE d.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.oid OFFSET 0
    ) c ON true
    WHERE d.class IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
)
SELECT pg_catalog.to_hex(pg_catalog.bit_xor(s.hash))
FROM (
    SELECT o.hash FROM objects o
    UNION ALL
    SELECT pg_catalog.hash_record_extended(ROW (w.oid, w.xmin), 1)
    FROM objects o JOIN pg_catalog.pg_rewrite w ON w.ev_class = o.oid
    WHERE o.kind IS NOT NULL
    UNION ALL
    SELECT pg_catalog.hash_record_extended(ROW (p.oid, p.xmin), 2)
    FROM objects o JOIN pg_catalog.pg_proc p ON p.oid = o.oid
    WHERE o.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
    UNION ALL
    SELECT pg_catalog.hash_record_extended(ROW (i.inhrelid, i.inhparent), 3)
    FROM objects o JOIN pg_catalog.pg_inherits i ON i.inhparent = o.oid
    WHERE o.has_children
    UNION ALL
    SELECT pg_catalog.hash_record_extended(ROW (p.oid, p.xmin), 4)
    FROM objects o JOIN pg_catalog.pg_policy p ON p.polrelid = o.oid
    WHERE o.kind IS NOT NULL
    UNION ALL
    SELECT pg_catalog.hash_record_extended(ROW (t.oid, t.xmin), 5)
    FROM objects o JOIN pg_catalog.pg_trigger t ON t.tgrelid = o.oid
    WHERE o.kind IS NOT NULL AND NOT t.tgisinternal
      AND t.tgfoid = (SELECT p.oid FROM pg_catalog.pg_proc p
                      JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                      WHERE n.nspname = 'model_catalog' AND p.proname = 'log_change')
    UNION ALL
    SELECT DISTINCT pg_catalog.hash_record_extended(ROW (e.oid, e.xmin), 6)
    FROM objects o
    JOIN pg_catalog.pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    -- The type itself, or that of the elements of an array.
    JOIN pg_catalog.pg_enum e ON e.enumtypid = coalesce(nullif(t.typelem, 0), t.oid)
    WHERE o.kind IS NOT NULL AND NOT o.is_partition
) s
