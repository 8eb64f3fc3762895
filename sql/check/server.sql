-- The connection: role, database, encryption, and whether the schema exists. One row.
SELECT current_setting('server_version') AS version,
       current_database() AS database,
       current_user AS role,
       -- A Unix-domain socket has no address; a loopback connection needs no TLS either.
       coalesce(NOT inet_client_addr() <<= ANY ('{127.0.0.0/8,::1}'::inet[]), false) AS network,
       s.ssl,
       s.version AS tls_version,
       s.cipher,
       to_regnamespace('model_catalog') IS NOT NULL AS migrated,
       current_setting('default_transaction_read_only') AS read_only
FROM (SELECT) one LEFT JOIN pg_stat_ssl s ON s.pid = pg_backend_pid()
