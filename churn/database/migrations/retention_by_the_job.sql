-- Retention by a login that owns nothing: it drops what set-up has recorded that is not kept, and nothing else.

CREATE TABLE retention (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    keep_weeks integer NOT NULL CHECK (keep_weeks >= 0)
);
INSERT INTO retention (keep_weeks) VALUES (0);
GRANT SELECT ON retention TO churn_reader, churn_writer;
COMMENT ON TABLE retention IS 'How many weeks of predictions are kept.';
COMMENT ON COLUMN retention.keep_weeks IS 'CHURN_KEEP_WEEKS when set-up ran last; the job drops no newer week. 0: all.';

CREATE FUNCTION retain_weeks(before date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept integer := (SELECT keep_weeks FROM public.retention);
BEGIN
    IF NOT pg_has_role(session_user, 'churn_owner', 'MEMBER')
       AND (kept = 0 OR before > date_trunc('week', current_date)::date - 7 * (kept - 1)) THEN
        RAISE EXCEPTION 'weeks before % are not dropped by login %: set-up recorded CHURN_KEEP_WEEKS=%', before,
            session_user, kept USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT public.drop_weeks(before);
END
$$;
COMMENT ON FUNCTION retain_weeks IS
    'Drops all weeks before a day; for a login without churn_owner, only those that retention does not keep.';
REVOKE ALL ON FUNCTION retain_weeks(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retain_weeks(date) TO churn_writer;
