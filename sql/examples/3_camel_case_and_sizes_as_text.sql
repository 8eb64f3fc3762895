-- Example 3: camelCase names, sizes as text, the name of a token instead of a provider, and paths that start with
-- `models/`. Run `model-catalog migrate --bare` in the database first.

-- Your existing table, as created by a web framework. Mixed-case names must be quoted everywhere.
CREATE SCHEMA studio;
CREATE TABLE studio."ModelFile" (
    "modelId"      varchar(200) PRIMARY KEY,
    "fileName"     text   NOT NULL,
    "downloadUrl"  text   NOT NULL,
    "fileSize"     text,                        -- '11.9GB', '335MB', ' 2.5 gb ', 'unknown', NULL
    "sha256"       text,
    "authEnv"      text,                        -- name of the required token: 'HF_TOKEN', 'CIVITAI_TOKEN', '' or NULL
    "savePath"     text   NOT NULL,             -- 'models/vae/ae.safetensors'
    "dependsOn"    text[] NOT NULL DEFAULT '{}',
    "description"  text
);

CREATE VIEW model_catalog.entries AS
SELECT m."modelId"::text AS id,
       m."fileName"      AS name,
       m."downloadUrl"   AS download_url,
       -- The number times its unit, in powers of 1000. Text that is not a size becomes NULL: an error in one row would
       -- make every read of the view fail.
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
       -- Clients resolve paths relative to their own models folder. Only the leading `models/` is removed.
       regexp_replace(m."savePath", '^models/', '') AS save_path,
       to_jsonb(m."dependsOn") AS dependencies,
       m."description"   AS description
FROM studio."ModelFile" m
CROSS JOIN LATERAL (
    SELECT regexp_match(upper(m."fileSize"), '^\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])B\s*$') AS part
) size;

-- The table name is a regclass literal, so a mixed-case name needs double quotes inside; the column name must not have
-- any.
SELECT model_catalog.watch('studio."ModelFile"', 'modelId');
SELECT model_catalog.reload();
