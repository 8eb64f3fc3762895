-- The ten columns that the view must have and the optional one, and the types they have. `served`: the servers accept
-- this type; they take varchar for text, any type whose text form is a number or JSON for file_size_gb and dependencies,
-- and an array for mirrors. `cast_to`: an expression for the column in terms of the existing view; in angle brackets if
-- it has to be supplied.
SELECT w.name, w.type AS wanted, format_type(a.atttypid, a.atttypmod) AS found,
       coalesce(a.atttypid = w.type::regtype OR w.name = 'mirrors' AND a.atttypid = 'text[]'::regtype, false) AS same,
       coalesce(CASE w.name
           WHEN 'file_size_gb' THEN t.typcategory = 'N' AND t.oid <> 'money'::regtype OR t.typcategory = 'S'
           WHEN 'dependencies' THEN t.oid IN ('jsonb'::regtype, 'json'::regtype) OR t.typcategory = 'S'
           WHEN 'mirrors' THEN t.oid IN ('jsonb'::regtype, 'json'::regtype) OR t.typcategory = 'A'
           WHEN 'auth_required' THEN t.oid = 'boolean'::regtype
           ELSE t.oid IN ('text'::regtype, 'varchar'::regtype) END, false) AS served,
       CASE WHEN a.atttypid IS NULL
            THEN CASE w.name WHEN 'auth_required' THEN 'false' WHEN 'dependencies' THEN '''[]''::jsonb'
                     WHEN 'file_size_gb' THEN 'NULL::numeric' WHEN 'hash' THEN 'NULL::text'
                     WHEN 'auth_provider' THEN 'NULL::text' WHEN 'description' THEN 'NULL::text'
                     ELSE format('<%s>', w.name) END
            WHEN w.type = 'jsonb' AND a.atttypid NOT IN ('json'::regtype, 'text'::regtype, 'varchar'::regtype)
            THEN format('to_jsonb(v.%I)', w.name)
            ELSE format('v.%I::%s', w.name, w.type) END AS cast_to
FROM (VALUES (1, 'id', 'text'), (2, 'name', 'text'), (3, 'download_url', 'text'), (4, 'file_size_gb', 'numeric'),
             (5, 'hash', 'text'), (6, 'auth_required', 'boolean'), (7, 'auth_provider', 'text'),
             (8, 'save_path', 'text'), (9, 'dependencies', 'jsonb'), (10, 'description', 'text'),
             (11, 'mirrors', 'jsonb')) AS w (place, name, type)
LEFT JOIN pg_attribute a ON a.attrelid = 'model_catalog.entries'::regclass
                        AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
WHERE w.name <> 'mirrors' OR a.attname IS NOT NULL
ORDER BY w.place
