-- Whether rows of public.models are read by the view, directly or through other views. One row. Asked of the system's
-- catalogs, which need no right, because who writes models may have none on the schema model_catalog.
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
               WHERE n.nspname = 'public' AND c.relname = 'models') AS reads_models
