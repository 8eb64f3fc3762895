-- Staging table for the rows of the file, with the column types of public.models, so that both sides of the comparison
-- are rounded alike. It is dropped at the end of the transaction. Lines with the optional column `mirrors` are left out
-- of this and the following statements if the table does not have it.
CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS
SELECT id, name, download_url, file_size_gb, hash, auth_required, auth_provider, save_path, dependencies, description
     , mirrors
FROM public.models
WITH NO DATA
