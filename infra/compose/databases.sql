-- Logins and databases. The image runs it when the volume is empty; it may be run again, as after an update that adds
-- logins (docs/deployment.md). Set-up (experiment_tracking/setup.py) makes all tables.
-- Each login reaches its own database alone; passwords come from the environment, so no file and no command holds one.
\set ON_ERROR_STOP on
\getenv setup_password SETUP_DB_PASSWORD
\getenv churn_password CHURN_DB_PASSWORD
\getenv analyst_password ANALYST_DB_PASSWORD
\getenv watch_password WATCH_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv dagster_password DAGSTER_DB_PASSWORD

SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['churn_owner', 'churn_writer', 'churn_reader', 'setup', 'churn', 'analyst', 'watch', 'mlflow', 'dagster'])
    AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec

ALTER ROLE setup LOGIN CREATEROLE PASSWORD :'setup_password';
ALTER ROLE churn LOGIN PASSWORD :'churn_password';
ALTER ROLE analyst LOGIN PASSWORD :'analyst_password';
ALTER ROLE watch LOGIN PASSWORD :'watch_password';
ALTER ROLE mlflow LOGIN PASSWORD :'mlflow_password';
ALTER ROLE dagster LOGIN PASSWORD :'dagster_password';

-- Set-up makes tables, erases, and makes readers. Dagster's events name accounts nowhere but in errors; erasure looks
-- there, too.
GRANT churn_owner, churn_writer, churn_reader, dagster TO setup;
-- The job owns nothing.
GRANT churn_writer, churn_reader TO churn;
REVOKE churn_owner, dagster FROM churn;
-- Readers; Grafana and the metrics.
GRANT churn_reader TO analyst, watch;
-- MLflow's tables are read as the writer, who is granted that and no more there.
GRANT churn_writer TO mlflow;

SELECT format('CREATE DATABASE %I', name) FROM unnest(ARRAY['churn_db', 'mlflow_db', 'dagster_db']) AS name
WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
ALTER DATABASE churn_db OWNER TO setup;
ALTER DATABASE mlflow_db OWNER TO mlflow;
ALTER DATABASE dagster_db OWNER TO dagster;

REVOKE CONNECT ON DATABASE churn_db, mlflow_db, dagster_db, postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE churn_db TO churn, analyst, watch;
GRANT CONNECT ON DATABASE dagster_db TO churn;
