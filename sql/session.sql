-- Settings of the loader's session. Through a pooler they are applied in every transaction, as SET LOCAL.
-- A generic plan or JIT compilation costs the delta query far more than it saves. With lock_timeout, a lock on a source
-- table causes an error that is logged and retried instead of a silent wait.
SET plan_cache_mode = force_custom_plan;
SET jit = off;
SET default_transaction_read_only = on;
SET lock_timeout = '5s';
SET idle_in_transaction_session_timeout = '60s';
