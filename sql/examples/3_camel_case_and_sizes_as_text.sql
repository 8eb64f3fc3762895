-- Worked example 3: camelCase columns, sizes as text, the name of a token instead of a provider, paths from `models/`.
-- Run it in a database that was prepared with `model-catalog migrate --bare`.

-- What is there already: your table, as a web framework made it. Such names need their quotes everywhere.
CREATE SCHEMA studio;
CREATE TABLE studio."ModelFile" (
    "modelId"      varchar(200) PRIMARY KEY,
    "fileName"     text   NOT NULL,
    "downloadUrl"  text   NOT NULL,
    "fileSize"     text,                        -- '11.9GB', '335MB', ' 2.5 gb ', 'unknown', NULL
    "sha256"       text,
    "authEnv"      text,                        -- the token a machine needs: 'HF_TOKEN', 'CIVITAI_TOKEN', '' or NULL
    "savePath"     text   NOT NULL,             -- 'models/vae/ae.safetensors'
    "dependsOn"    text[] NOT NULL DEFAULT '{}',
    "description"  text
);

CREATE VIEW model_catalog.entries AS
SELECT m."modelId"::text AS id,
       m."fileName"      AS name,
       m."downloadUrl"   AS download_url,
       -- The number times its unit, as powers of 1000. What does not look like a size is no size: NULL, not an error, for
       -- an error in one row would be one in every read of the view.
       trim_scale(size.part[1]::numeric * CASE size.part[2]
           WHEN 'K' THEN 0.000001
           WHEN 'M' THEN 0.001
           WHEN 'G' THEN 1
           WHEN 'T' THEN 1000
       END)              AS file_size_gb,
       m."sha256"        AS hash,
       coalesce(m."authEnv", '') <> '' AS auth_required,
       CASE m."authEnv"
           WHEN 'HF_TOKEN' THEN 'huggingface'
           WHEN 'CIVITAI_TOKEN' THEN 'civitai'
       END               AS auth_provider,
       -- Machines put paths below their own folder of models. Only the first `models/` goes.
       regexp_replace(m."savePath", '^models/', '') AS save_path,
       to_jsonb(m."dependsOn") AS dependencies,
       m."description"   AS description
FROM studio."ModelFile" m
CROSS JOIN LATERAL (
    SELECT regexp_match(upper(m."fileSize"), '^\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])B\s*$') AS part
) size;

-- The table's name is one text, so it takes both kinds of quotes; the column's takes one.
SELECT model_catalog.watch('studio."ModelFile"', 'modelId');
SELECT model_catalog.reload();
