-- The tables that the view reads, also through other views, with partitions and child tables, and their triggers. One
-- row per table. `$ids$` is replaced by rows (schema, table, column): the columns that the plan of a lookup compares
-- with the id of a model. `root`: the table to call watch() for. Events are bits of tgtype: 4 INSERT, 8 DELETE, 16
-- UPDATE, 32 TRUNCATE.
--
-- `successor`: a table of the same schema that the view does not read, although it has all columns that the view uses,
-- and whose name this table's name begins or ends with. So it looks after tables were swapped by renaming: views refer to
-- tables by oid, and follow the old one. `follow`: the statements that make the views read the successor. `indexed`: the
-- first column or expression of each index, a line each.
WITH RECURSIVE views (oid, as_whom) AS (
    SELECT 'model_catalog.entries'::regclass::oid, NULL::oid
    UNION
    SELECT d.refobjid,
           -- Privileges are checked for the owner of the view, or with security_invoker for the current user.
           CASE WHEN coalesce('security_invoker=true' = ANY (v.reloptions) OR 'security_invoker=on' = ANY (v.reloptions), false)
                THEN current_user::regrole::oid ELSE v.relowner END
    FROM views r
    JOIN pg_class v ON v.oid = r.oid AND v.relkind = 'v'
    JOIN pg_rewrite w ON w.ev_class = v.oid AND w.ev_type = '1'
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
), tables (oid, root, as_whom) AS (
    SELECT r.oid, r.oid, r.as_whom FROM views r JOIN pg_class c ON c.oid = r.oid WHERE c.relkind NOT IN ('v', 'S', 'c')
    UNION
    -- Privileges on a child table are not checked when it is read through its parent.
    SELECT i.inhrelid, CASE WHEN c.relispartition THEN t.root ELSE i.inhrelid END, NULL::oid
    FROM tables t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
), found AS (
    SELECT t.oid, (array_agg(t.root ORDER BY t.root <> t.oid DESC))[1] AS root,
           array_agg(t.as_whom) FILTER (WHERE t.as_whom IS NOT NULL) AS readers
    FROM tables t GROUP BY t.oid
), used (oid, name, type) AS (
    SELECT DISTINCT a.attrelid, a.attname, a.atttypid
    FROM views v
    JOIN pg_rewrite w ON w.ev_class = v.oid AND w.ev_type = '1'
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND d.refobjsubid > 0
), successors AS (
    SELECT DISTINCT ON (c.oid) c.oid, quote_ident(n.nspname) AS schema, quote_ident(c.relname) AS old, quote_ident(s.relname) AS new
    FROM found f
    JOIN pg_class c ON c.oid = f.oid AND f.root = f.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class s ON s.relnamespace = c.relnamespace AND s.relkind IN ('r', 'p') AND s.relname <> c.relname
                   AND (starts_with(c.relname, s.relname) OR right(c.relname, length(s.relname)) = s.relname)
    WHERE NOT EXISTS (SELECT FROM found o WHERE o.oid = s.oid)
      AND EXISTS (SELECT FROM used u WHERE u.oid = c.oid)
      AND NOT EXISTS (
          SELECT FROM used u
          WHERE u.oid = c.oid AND NOT EXISTS (
              SELECT FROM pg_attribute b
              WHERE b.attrelid = s.oid AND b.attname = u.name AND b.atttypid = u.type AND b.attnum > 0
                AND NOT b.attisdropped))
    ORDER BY c.oid, length(s.relname) DESC, s.relname
), swapped AS (
    SELECT s.oid, s.schema || '.' || s.new AS successor, string_agg(DISTINCT format(
               -- The table is replaced, and without an alias also in the names of its columns.
               E'CREATE OR REPLACE VIEW %I.%I AS\n%s', n.nspname, v.relname,
               regexp_replace(
                   regexp_replace(pg_get_viewdef(v.oid), e.schema || E'\\.' || e.old || E'(?![\\w$"])',
                                  replace(s.schema || '.' || s.new, E'\\', E'\\\\'), 'g'),
                   E'(?<![\\w$".])' || e.old || E'\\.', replace(s.new, E'\\', E'\\\\') || '.', 'g')), E'\n') AS follow
    FROM successors s
    CROSS JOIN LATERAL (
        SELECT regexp_replace(s.schema, E'(\\W)', E'\\\\\\1', 'g'), regexp_replace(s.old, E'(\\W)', E'\\\\\\1', 'g')
    ) e (schema, old)
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite w ON w.oid = d.objid AND w.ev_type = '1'
    JOIN pg_class v ON v.oid = w.ev_class AND v.relkind = 'v'
    JOIN pg_namespace n ON n.oid = v.relnamespace
    WHERE EXISTS (SELECT FROM views r WHERE r.oid = v.oid)
    GROUP BY s.oid, s.schema, s.new
), ids (root, column_name) AS (
    SELECT f.root, min(i.column_name)
    FROM (VALUES $ids$) AS i (schema_name, table_name, column_name)
    JOIN pg_namespace n ON n.nspname = i.schema_name
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = i.table_name
    JOIN found f ON f.oid = c.oid
    GROUP BY f.root
)
SELECT format('%I.%I', n.nspname, c.relname) AS name,
       n.nspname AS schema_name, c.relname AS table_name,
       c.relkind AS kind,
       c.oid < 16384 AS of_the_system,
       pg_relation_size(c.oid) AS bytes,
       format('%I.%I', rn.nspname, rc.relname) AS root,
       i.column_name AS id_column,
       c.relkind IN ('r', 'p') AND c.oid >= 16384 AS watchable,
       w.firing = 60 AS watched,
       w.present, w.firing, w.columns, w.lost, w.enable,
       s.successor, s.follow,
       (SELECT string_agg(pg_get_indexdef(x.indexrelid, 1, true), E'\n')
        FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL) AS indexed,
       (SELECT string_agg(DISTINCT format('GRANT SELECT ON %I.%I TO %I;', n.nspname, c.relname, pg_get_userbyid(r)), E'\n')
        FROM unnest(f.readers) r WHERE NOT has_table_privilege(r, c.oid, 'SELECT')) AS grants
FROM found f
JOIN pg_class c ON c.oid = f.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class rc ON rc.oid = f.root
JOIN pg_namespace rn ON rn.oid = rc.relnamespace
LEFT JOIN ids i ON i.root = f.root
LEFT JOIN swapped s ON s.oid = f.oid
CROSS JOIN LATERAL (
    SELECT coalesce(bit_or(t.tgtype::int & 60), 0) AS present,
           coalesce(bit_or(t.tgtype::int & 60) FILTER (WHERE t.tgenabled IN ('O', 'A')), 0) AS firing,
           string_agg(DISTINCT a.name, ', ') AS columns,
           string_agg(DISTINCT a.name, ', ') FILTER (WHERE a.name IS NOT NULL AND NOT EXISTS (
               SELECT FROM pg_attribute b
               WHERE b.attrelid = t.tgrelid AND b.attname = a.name AND b.attnum > 0 AND NOT b.attisdropped)) AS lost,
           string_agg(format('ALTER TABLE %I.%I ENABLE TRIGGER %I;', n.nspname, c.relname, t.tgname), E'\n' ORDER BY t.tgname)
               FILTER (WHERE t.tgenabled NOT IN ('O', 'A')) AS enable
    FROM pg_trigger t
    CROSS JOIN LATERAL (
        -- Trigger arguments are stored as null-terminated strings; this trigger has one, the id column, or none.
        SELECT CASE WHEN t.tgnargs > 0 THEN
            convert_from(substring(t.tgargs FROM 1 FOR length(t.tgargs) - 1), getdatabaseencoding()) END AS name
    ) a
    WHERE t.tgrelid = c.oid AND t.tgtype::int & 1 = 0
      AND t.tgfoid = (SELECT p.oid FROM pg_proc p JOIN pg_namespace pn ON pn.oid = p.pronamespace
                      WHERE pn.nspname = 'model_catalog' AND p.proname = 'log_change')
) w
ORDER BY f.root, n.nspname, c.relname
