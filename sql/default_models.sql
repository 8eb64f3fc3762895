-- The default table, the view over it and its triggers. `migrate` runs this unless the view exists. An existing table
-- public.models gets the triggers and is not modified otherwise. Its columns must have the ten names of the view and
-- types that can be cast for every possible row; all that do not are reported in one error. A column `mirrors` is
-- optional. A new table starts in strict mode: it has no writers yet that rely on rows that servers reject.
DO $$
DECLARE
    models  regclass := to_regclass('public.models');
    kind    "char" := (SELECT relkind FROM pg_class WHERE oid = models);
    wrong   text;
    instead text := 'Run `model-catalog migrate --bare`, define the view model_catalog.entries yourself, then call'
                    ' model_catalog.watch() for each table that it reads, and model_catalog.reload().';
BEGIN
    IF to_regclass('model_catalog.entries') IS NOT NULL THEN
        RETURN;
    END IF;

    IF kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION 'public.models is a %, not a table: it cannot have the triggers that record changes',
                        CASE kind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                                  ELSE format('relation of kind %s', kind) END
            USING HINT = instead;
    END IF;
    -- A domain counts as its base type. Text is not accepted for a number: the cast would fail on the first row that
    -- has none, and with it every read of the view.
    SELECT string_agg(CASE WHEN c.type IS NULL THEN 'has no column ' || w.name
                           ELSE format('has a column %s of type %s, which cannot be read as %s', w.name, c.type, w.type)
                      END, '; ' ORDER BY w.place)
    INTO wrong
    FROM (VALUES (1, 'id', 'text'), (2, 'name', 'text'), (3, 'download_url', 'text'), (4, 'file_size_gb', 'numeric'),
                 (5, 'hash', 'text'), (6, 'auth_required', 'boolean'), (7, 'auth_provider', 'text'),
                 (8, 'save_path', 'text'), (9, 'dependencies', 'jsonb'), (10, 'description', 'text'),
                 (11, 'mirrors', 'jsonb')) w (place, name, type)
    LEFT JOIN (
        SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, base.typcategory AS category, base.typname AS base
        FROM pg_attribute a
        JOIN pg_type t ON t.oid = a.atttypid
        JOIN pg_type base ON base.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
        WHERE a.attrelid = models AND a.attnum > 0 AND NOT a.attisdropped
    ) c ON c.attname = w.name
    WHERE c.type IS NULL AND w.name <> 'mirrors'
       OR w.type = 'numeric' AND c.base NOT IN ('numeric', 'float8', 'float4', 'int8', 'int4', 'int2')
       OR w.type = 'boolean' AND c.base <> 'bool'
       OR w.type = 'jsonb' AND c.base NOT IN ('jsonb', 'json') AND c.category <> 'A';
    IF models IS NOT NULL AND wrong IS NOT NULL THEN
        RAISE EXCEPTION 'the existing table public.models %', wrong USING HINT = instead;
    END IF;

    IF models IS NULL THEN
        CREATE TABLE public.models (
            id            text PRIMARY KEY,
            name          text NOT NULL,
            download_url  text NOT NULL,
            file_size_gb  numeric(10, 2),
            hash          text,
            auth_required boolean NOT NULL DEFAULT false,
            auth_provider text,
            save_path     text NOT NULL,
            dependencies  jsonb NOT NULL DEFAULT '[]',
            description   text,
            mirrors       jsonb
        );
        models := 'public.models';
        COMMENT ON COLUMN public.models.mirrors IS 'further URLs of the file, a JSON array of strings; optional';
        PERFORM model_catalog.strict(true);
    END IF;

    EXECUTE format(
        'CREATE VIEW model_catalog.entries AS
         SELECT id::text,
                name::text,
                download_url::text,
                file_size_gb::numeric,
                hash::text,
                auth_required::boolean,
                auth_provider::text,
                save_path::text,
                to_jsonb(dependencies) AS dependencies,
                description::text
                %s
         FROM public.models',
        (SELECT ', to_jsonb(mirrors) AS mirrors' FROM pg_attribute
         WHERE attrelid = models AND attname = 'mirrors' AND NOT attisdropped));
    COMMENT ON VIEW model_catalog.entries IS 'the models to serve; the servers read models from this view only';

    PERFORM model_catalog.watch('public.models', 'id');
END
$$;
