-- The tables of others in the schema public, if `migrate` would create public.models beside them. NULL if there are
-- none, or if that table or the view model_catalog.entries exists already. Tables of extensions do not count. One row.
SELECT CASE WHEN count(*) > 0 THEN
           pg_catalog.array_to_string((pg_catalog.array_agg(pg_catalog.quote_ident(c.relname) ORDER BY c.relname))[:3], ', ')
           || CASE WHEN count(*) > 3 THEN pg_catalog.format(' and %s more', count(*) - 3) ELSE '' END
       END AS names
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_class e
                  JOIN pg_catalog.pg_namespace en ON en.oid = e.relnamespace
                  WHERE (en.nspname, e.relname) IN (('public', 'models'), ('model_catalog', 'entries')))
