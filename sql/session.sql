-- Settings of the loader's session, whatever the role, the database and the connection string say. Through a pooler they
-- are applied in every transaction, as SET LOCAL. The program adds statement_timeout, the limit of a full read.
--
-- A generic plan or JIT compilation costs the delta query far more than it saves. With lock_timeout, a lock on a source
-- table causes an error that is logged and retried instead of a silent wait.
SET plan_cache_mode = force_custom_plan;
SET jit = off;
SET default_transaction_read_only = on;
SET lock_timeout = '5s';
SET idle_in_transaction_session_timeout = '60s';
SET idle_session_timeout = 0;
-- A serializable reader can make writers fail, waits for them if its transactions are deferrable, and is an error on a
-- standby.
SET default_transaction_isolation = 'read committed';
SET default_transaction_deferrable = off;
-- Without them, each look-up would read whole tables.
SET enable_indexscan = on;
SET enable_indexonlyscan = on;
SET enable_bitmapscan = on;
SET enable_nestloop = on;
SET enable_hashjoin = on;
-- NULL in an array is NULL.
SET array_nulls = on;
-- A connection on which nobody receives what is sent is closed; it would hold its locks.
SET tcp_user_timeout = '60s';
-- Settings that not every version or platform has. A query whose client is gone ends after 10 s.
SELECT pg_catalog.set_config('client_connection_check_interval', '10s', false)
WHERE pg_catalog.version() LIKE '%linux%';
SELECT pg_catalog.set_config('transaction_timeout', '0', false)
WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL;
SELECT pg_catalog.set_config('restrict_nonsystem_relation_kind', '', false)
WHERE pg_catalog.current_setting('restrict_nonsystem_relation_kind', true) IS NOT NULL;
