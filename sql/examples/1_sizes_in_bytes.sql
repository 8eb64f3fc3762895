-- Example 1: a single table with other column names, and sizes in bytes.
-- Run `model-catalog migrate --bare` in the database first.

-- Your existing table. The statements below do not modify its columns.
CREATE SCHEMA registry;
CREATE TABLE registry.weights (
    slug     text    PRIMARY KEY,
    filename text    NOT NULL,
    url      text    NOT NULL,
    bytes    bigint,              -- NULL if unknown
    sha256   text,
    gated    boolean NOT NULL DEFAULT false,
    folder   text    NOT NULL,
    note     text
);

-- The view that the servers read: ten columns, in any order, with exactly these names and types. An eleventh, `mirrors`
-- (jsonb or text[]), is optional. A gigabyte is 10^9 bytes. After a change the servers look up one id at a time, so
-- `slug` needs an index; here it is the primary key.
CREATE VIEW model_catalog.entries AS
SELECT w.slug                                   AS id,
       w.filename                               AS name,
       w.url                                    AS download_url,
       round(w.bytes / 1e9, 2)                  AS file_size_gb,
       w.sha256                                 AS hash,
       w.gated                                  AS auth_required,
       CASE WHEN w.gated THEN 'huggingface' END AS auth_provider,
       w.folder || '/' || w.filename            AS save_path,
       '[]'::jsonb                              AS dependencies,
       w.note                                   AS description
FROM registry.weights w;

-- From now on changes are recorded. The second argument is the column with the id of the model.
SELECT model_catalog.watch('registry.weights', 'slug');
-- Makes every server read the new view.
SELECT model_catalog.reload();
