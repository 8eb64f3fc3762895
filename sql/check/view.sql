-- Definition, owner and grants of the view. One row.
SELECT c.relkind, pg_get_viewdef(c.oid) AS definition, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
       array_to_string(c.reloptions, ', ') AS options,
       (SELECT string_agg(format('GRANT %s ON model_catalog.entries TO %s;', a.privilege_type,
                   CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END), E'\n')
        FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner) AS grants
FROM pg_class c WHERE c.oid = 'model_catalog.entries'::regclass
