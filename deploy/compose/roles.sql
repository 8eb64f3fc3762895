-- The server's role and its rights, before `migrate` makes what they are for: reading the schema, nothing else.
CREATE ROLE catalog LOGIN PASSWORD 'catalog';
CREATE SCHEMA model_catalog;
GRANT USAGE ON SCHEMA model_catalog TO catalog;
ALTER DEFAULT PRIVILEGES IN SCHEMA model_catalog GRANT SELECT ON TABLES TO catalog;
