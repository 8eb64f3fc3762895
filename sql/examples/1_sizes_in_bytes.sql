-- Worked example 1: one table, with other names of columns and sizes in bytes.
-- Run it in a database that was prepared with `model-catalog migrate --bare`.

-- What is there already: your table. Nothing below changes a column of it.
CREATE SCHEMA registry;
CREATE TABLE registry.weights (
    slug     text    PRIMARY KEY,
    filename text    NOT NULL,
    url      text    NOT NULL,
    bytes    bigint,              -- NULL where nobody has measured it
    sha256   text,
    gated    boolean NOT NULL DEFAULT false,
    folder   text    NOT NULL,
    note     text
);

-- The catalog's view of it: ten columns, in any order, with just these names and types. A gigabyte is 10^9 bytes.
-- The server asks the view for one id at a time after a change, so `slug` needs its index: here, the primary key.
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

-- Changes are announced from here on; the second argument is the column with the id of the model.
SELECT model_catalog.watch('registry.weights', 'slug');
-- Every server reads the view now.
SELECT model_catalog.reload();
