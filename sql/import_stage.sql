-- Where the rows of a file wait to be compared: a temporary table with the very types of public.models, so that both
-- sides are rounded alike. It is gone with the transaction.
CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS
SELECT id, name, download_url, file_size_gb, hash, auth_required, auth_provider, save_path, dependencies, description
FROM public.models
WITH NO DATA
