-- Example 2: numeric ids, and dependencies in a join table.
-- Run `model-catalog migrate --bare` in the database first.

-- Your existing tables.
CREATE SCHEMA assets;
CREATE TABLE assets.asset (
    id       bigint PRIMARY KEY,
    title    text   NOT NULL,
    url      text   NOT NULL,
    size_gb  numeric(8, 3),
    checksum text,
    provider text,                -- NULL if no account is needed
    path     text   NOT NULL,
    about    text
);
CREATE TABLE assets.needs (
    asset bigint NOT NULL REFERENCES assets.asset ON DELETE CASCADE,
    other bigint NOT NULL REFERENCES assets.asset ON DELETE CASCADE,
    PRIMARY KEY (asset, other)    -- starts with the column that the view looks up
);

-- Ids of models are text. The primary key is a bigint and cannot be used for a lookup by text, so this adds an index on
-- the text. Without it, every change would make every server scan the whole table.
CREATE INDEX asset_id_text_idx ON assets.asset ((id::text));

-- Dependencies are an array of ids, so they are text, too. ORDER BY makes the array deterministic: with another order
-- the model would count as changed. A model without dependencies has an empty array, not NULL.
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

-- Watch both tables. A row of the join table belongs to the model that has the dependency, so its column is `asset`,
-- not `other`. Rows deleted by ON DELETE CASCADE are recorded like any other change.
SELECT model_catalog.watch('assets.asset', 'id');
SELECT model_catalog.watch('assets.needs', 'asset');
SELECT model_catalog.reload();
