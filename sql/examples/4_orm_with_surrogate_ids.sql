-- Example 4: the schema of an ORM such as Prisma: quoted names, enums, surrogate ids beside a slug, a lookup table, an
-- implicit join table and soft deletes. Run `model-catalog migrate --bare` in the database first.

-- Your existing tables, as the ORM creates them. It creates no index on foreign keys.
CREATE SCHEMA app;
CREATE TYPE app."ModelKind" AS ENUM ('CHECKPOINT', 'LORA', 'VAE');
CREATE TABLE app."Provider" (
    "id"            serial  PRIMARY KEY,
    "slug"          text    NOT NULL UNIQUE,
    "tokenRequired" boolean NOT NULL
);
CREATE TABLE app."Model" (
    "id"          uuid            PRIMARY KEY DEFAULT gen_random_uuid(),
    "slug"        text            NOT NULL UNIQUE,
    "kind"        app."ModelKind" NOT NULL,
    "description" text,
    "providerId"  integer         REFERENCES app."Provider",
    "deletedAt"   timestamptz
);
CREATE TABLE app."ModelFile" (
    "id"        uuid   PRIMARY KEY DEFAULT gen_random_uuid(),
    "modelId"   uuid   NOT NULL REFERENCES app."Model" ON DELETE CASCADE,
    "fileName"  text   NOT NULL,
    "url"       text   NOT NULL,
    "sizeBytes" bigint,
    "sha256"    text
);
CREATE TABLE app."_ModelDependencies" (
    "A" uuid NOT NULL REFERENCES app."Model" ON DELETE CASCADE,
    "B" uuid NOT NULL REFERENCES app."Model" ON DELETE CASCADE,
    UNIQUE ("A", "B")
);

-- Machines know a model by its slug. A model without a file and a soft-deleted one are not served, nor do they appear in
-- the dependencies of others. The last branch of CASE keeps a kind that is added later from becoming NULL, for which the
-- row would be rejected.
CREATE VIEW model_catalog.entries AS
SELECT m."slug"                           AS id,
       f."fileName"                       AS name,
       f."url"                            AS download_url,
       round(f."sizeBytes" / 1e9, 2)      AS file_size_gb,
       f."sha256"                         AS hash,
       coalesce(p."tokenRequired", false) AS auth_required,
       p."slug"                           AS auth_provider,
       CASE m."kind"
           WHEN 'CHECKPOINT' THEN 'checkpoints'
           WHEN 'LORA'       THEN 'loras'
           ELSE lower(m."kind"::text)
       END || '/' || f."fileName"         AS save_path,
       (SELECT coalesce(jsonb_agg(b."slug" ORDER BY b."slug"), '[]')
        FROM app."_ModelDependencies" d
        JOIN app."Model" b ON b."id" = d."B" AND b."deletedAt" IS NULL
        WHERE d."A" = m."id")             AS dependencies,
       m."description"                    AS description
FROM app."Model" m
JOIN app."ModelFile" f ON f."modelId" = m."id"
LEFT JOIN app."Provider" p ON p."id" = m."providerId"
WHERE m."deletedAt" IS NULL;

-- No column of these tables holds the ids of all models that a change concerns: the other tables refer to a model by its
-- surrogate id, and the slug of a model is also in the dependencies of others. Without a column, each change makes the
-- servers read the whole view. If that is too much, keep the slug in the tables that change often, and watch these by it.
SELECT model_catalog.watch('app."Model"');
SELECT model_catalog.watch('app."ModelFile"');
SELECT model_catalog.watch('app."_ModelDependencies"');
SELECT model_catalog.watch('app."Provider"');
SELECT model_catalog.reload();

-- `model-catalog check` prints the indexes that the foreign keys need once the tables have some rows.
