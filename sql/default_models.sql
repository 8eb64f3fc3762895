-- The default table, its view and its triggers: applied by `migrate` as long as nobody has defined the view.
-- An existing table `public.models` is left as it is; its ten columns are read under their own names.
DO $$
BEGIN
    IF to_regclass('model_catalog.entries') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE IF NOT EXISTS public.models (
        id            text PRIMARY KEY,
        name          text NOT NULL,
        download_url  text NOT NULL,
        file_size_gb  numeric(10, 2),
        hash          text,
        auth_required boolean NOT NULL DEFAULT false,
        auth_provider text,
        save_path     text NOT NULL,
        dependencies  jsonb NOT NULL DEFAULT '[]',
        description   text
    );

    CREATE VIEW model_catalog.entries AS
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
    FROM public.models;
    COMMENT ON VIEW model_catalog.entries IS 'the only thing model-catalog reads models from';

    PERFORM model_catalog.watch('public.models', 'id');
END
$$;
