-- Sessions that are idle in a transaction are ended: their locks stop retention. A database's setting reaches every login,
-- a group role's does not reach its members. What somebody has set stays; our own connections have a limit of their own.
DO $$
DECLARE
    statement text;
    is_owner boolean;
BEGIN
    SELECT format('ALTER DATABASE %I SET idle_in_transaction_session_timeout = %L', datname, '5min'),
           pg_has_role(datdba, 'USAGE')
    INTO statement, is_owner
    FROM pg_database AS d WHERE datname = current_database() AND NOT EXISTS (
        SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole = 0
        AND array_to_string(setconfig, ' ') LIKE '%idle_in_transaction_session_timeout=%'
    );
    IF is_owner THEN
        EXECUTE statement;
    ELSIF statement IS NOT NULL THEN
        RAISE WARNING 'open transactions of readers stop retention; the owner of the database can limit them by %',
            statement;
    END IF;
END
$$;
