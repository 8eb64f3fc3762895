-- Settings of the loader's session; through a pooler they are made again in every transaction, as SET LOCAL.
-- A generic plan or JIT would cost the delta far more than they save. A lock held on a source table must end as an
-- error that is retried, never as a silent wait.
SET plan_cache_mode = force_custom_plan;
SET jit = off;
SET default_transaction_read_only = on;
SET lock_timeout = '5s';
SET idle_in_transaction_session_timeout = '60s';
