-- For lists that do not know these four columns: what the table holds stays.
UPDATE pg_temp.incoming i
SET hash = m.hash, auth_required = m.auth_required, auth_provider = m.auth_provider, dependencies = m.dependencies
FROM public.models m
WHERE m.id = i.id
