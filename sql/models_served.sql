-- Whether the view reads public.models, directly or through other views, and whether that table has the optional column
-- `mirrors`. One row. It uses the system catalogs, which
-- every role can read: a role that writes models may have no privileges on the schema model_catalog.
WITH RECURSIVE reads AS (
    SELECT c.oid
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'model_catalog' AND c.relname = 'entries'
    UNION
    SELECT d.refobjid
    FROM reads
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = reads.oid
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
                               AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
)
SELECT EXISTS (SELECT FROM reads) AS has_view,
       EXISTS (SELECT FROM reads
               JOIN pg_catalog.pg_class c USING (oid)
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'public' AND c.relname = 'models') AS reads_models,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = pg_catalog.to_regclass('public.models') AND a.attname = 'mirrors'
                 AND NOT a.attisdropped) AS has_mirrors
