-- Logins and databases, made once, when the volume is empty. Set-up (experiment_tracking/setup.py) makes all tables.
-- Each login reaches its own database alone; passwords come from the environment, so no file and no command holds one.
\set ON_ERROR_STOP on
\getenv churn_password CHURN_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv dagster_password DAGSTER_DB_PASSWORD
\getenv watch_password WATCH_DB_PASSWORD

CREATE ROLE churn_owner NOLOGIN;
CREATE ROLE churn_writer NOLOGIN;
CREATE ROLE churn_reader NOLOGIN;

-- Dagster's events name accounts nowhere but in errors; erasure looks there, too, hence churn's membership.
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
-- MLflow's tables are read as the writer, who is granted that and no more there.
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password' IN ROLE churn_writer;
CREATE ROLE churn LOGIN PASSWORD :'churn_password' IN ROLE churn_owner, churn_writer, churn_reader, dagster;
-- Grafana and the metrics.
CREATE ROLE watch LOGIN PASSWORD :'watch_password' IN ROLE churn_reader;

CREATE DATABASE churn_db OWNER churn;
CREATE DATABASE mlflow_db OWNER mlflow;
CREATE DATABASE dagster_db OWNER dagster;

REVOKE CONNECT ON DATABASE churn_db, mlflow_db, dagster_db, postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE churn_db TO watch;
