-- Writes only the rows that differ, ordered by id to avoid deadlocks with other writers.
INSERT INTO public.models
    (id, name, download_url, file_size_gb, hash, auth_required, auth_provider, save_path, dependencies, description
     , mirrors
    )
SELECT i.id, i.name, i.download_url, i.file_size_gb, i.hash, i.auth_required, i.auth_provider, i.save_path,
       i.dependencies, i.description
     , i.mirrors
FROM pg_temp.incoming i
JOIN pg_temp.difference d ON d.id = i.id
ORDER BY i.id
ON CONFLICT (id) DO UPDATE
SET name          = excluded.name,
    download_url  = excluded.download_url,
    file_size_gb  = excluded.file_size_gb,
    hash          = excluded.hash,
    auth_required = excluded.auth_required,
    auth_provider = excluded.auth_provider,
    save_path     = excluded.save_path,
    dependencies  = excluded.dependencies,
    description   = excluded.description
  , mirrors       = excluded.mirrors
