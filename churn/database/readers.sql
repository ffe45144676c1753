-- Statements of readers.py.
-- rights
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication
    OR EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
FROM pg_roles AS r WHERE rolname = :reader
-- forget
DELETE FROM reader_variants WHERE reader = :reader
-- grant
INSERT INTO reader_variants (reader, variant) SELECT :reader, unnest(CAST(:variants AS text[])) ON CONFLICT DO NOTHING
-- granted
SELECT variant FROM reader_variants WHERE reader = :reader ORDER BY variant
