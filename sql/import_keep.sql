-- For formats that lack columns: keeps what existing rows have in them. No such format has those without coalesce.
UPDATE pg_temp.incoming i
SET file_size_gb = coalesce(i.file_size_gb, m.file_size_gb), hash = coalesce(i.hash, m.hash),
    description = coalesce(i.description, m.description), auth_required = m.auth_required,
    auth_provider = m.auth_provider, dependencies = m.dependencies
  , mirrors = m.mirrors
FROM public.models m
WHERE m.id = i.id
