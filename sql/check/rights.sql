-- The privileges of the role. `needed`: the server requires it; the others are used by `check` only. Objects are looked
-- up in the system catalogs, because resolving a name in a schema without USAGE is an error.
SELECT o.name, o.needed, o.exists, o.granted, o.statement
FROM (
    SELECT 'schema model_catalog' AS name, true AS needed, true AS exists,
           has_schema_privilege(n.oid, 'USAGE') AS granted,
           format('GRANT USAGE ON SCHEMA model_catalog TO %I;', current_user) AS statement
    FROM pg_namespace n WHERE n.nspname = 'model_catalog'
    UNION ALL
    SELECT 'model_catalog.' || w.name, w.needed, c.oid IS NOT NULL, has_table_privilege(c.oid, 'SELECT'),
           format('GRANT SELECT ON model_catalog.%I TO %I;', w.name, current_user)
    FROM (VALUES ('entries', true), ('changes', true), ('history', true), ('state', false), ('migrations', false))
             AS w (name, needed)
    LEFT JOIN pg_class c ON c.relname = w.name
                        AND c.relnamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'model_catalog')
) o
