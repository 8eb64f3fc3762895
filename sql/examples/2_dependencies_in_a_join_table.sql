-- Worked example 2: numbers as ids, and dependencies in a join table.
-- Run it in a database that was prepared with `model-catalog migrate --bare`.

-- What is there already: your tables.
CREATE SCHEMA assets;
CREATE TABLE assets.asset (
    id       bigint PRIMARY KEY,
    title    text   NOT NULL,
    url      text   NOT NULL,
    size_gb  numeric(8, 3),
    checksum text,
    provider text,                -- NULL where no account is needed
    path     text   NOT NULL,
    about    text
);
CREATE TABLE assets.needs (
    asset bigint NOT NULL REFERENCES assets.asset ON DELETE CASCADE,
    other bigint NOT NULL REFERENCES assets.asset ON DELETE CASCADE,
    PRIMARY KEY (asset, other)    -- begins with the column that the view looks up
);

-- In the catalog an id is a text. The primary key is one of numbers and can't serve a look-up by text, so the text gets an
-- index of its own. Without it every change would read the whole table once on every server.
CREATE INDEX asset_id_text_idx ON assets.asset ((id::text));

-- The dependencies are an array of ids, so they are texts too. The order is made the same every time: another order is
-- another answer. No needs is an empty array, not NULL.
CREATE VIEW model_catalog.entries AS
SELECT a.id::text             AS id,
       a.title                AS name,
       a.url                  AS download_url,
       a.size_gb::numeric     AS file_size_gb,
       a.checksum             AS hash,
       a.provider IS NOT NULL AS auth_required,
       a.provider             AS auth_provider,
       a.path                 AS save_path,
       (SELECT coalesce(jsonb_agg(n.other::text ORDER BY n.other), '[]')
        FROM assets.needs n
        WHERE n.asset = a.id) AS dependencies,
       a.about                AS description
FROM assets.asset a;

-- Both tables are watched. A row of the join table changes the model that has the dependency, so its column is `asset`,
-- not `other`. What ON DELETE CASCADE takes away is announced like any other change.
SELECT model_catalog.watch('assets.asset', 'id');
SELECT model_catalog.watch('assets.needs', 'asset');
SELECT model_catalog.reload();
