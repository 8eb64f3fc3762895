-- The role of the servers, with read access to everything that `migrate` will create in the schema.
CREATE ROLE catalog LOGIN PASSWORD 'catalog';
CREATE SCHEMA model_catalog;
GRANT USAGE ON SCHEMA model_catalog TO catalog;
ALTER DEFAULT PRIVILEGES IN SCHEMA model_catalog GRANT SELECT ON TABLES TO catalog;
