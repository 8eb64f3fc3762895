-- For formats without these columns: keeps the values of existing rows.
UPDATE pg_temp.incoming i
SET hash = m.hash, auth_required = m.auth_required, auth_provider = m.auth_provider, dependencies = m.dependencies
  , mirrors = m.mirrors
FROM public.models m
WHERE m.id = i.id
