"""Letting go: one account erased and kept out, old weeks dropped; and functions that no schema can hijack."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ERASED = """
CREATE TABLE erasure_salt (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    salt bytea NOT NULL CHECK (length(salt) = 32)
);
INSERT INTO erasure_salt (salt)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
COMMENT ON TABLE erasure_salt IS 'This deployment''s own; who has it can find out by trial which accounts were erased.';

CREATE TABLE erased_accounts (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    variant text NOT NULL,
    code integer NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (variant, digest)
);
COMMENT ON TABLE erased_accounts IS
    'Whose rows are dropped when they are read again: salted hashes, as churn.data.erased makes them; no account id.';
COMMENT ON COLUMN erased_accounts.variant IS 'Empty: erased of all variants.';
GRANT SELECT ON erasure_salt, erased_accounts TO churn_writer;

ALTER TABLE scoring_batches ADD COLUMN n_rows_erased bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN scoring_batches.n_rows_erased IS 'Rows read and dropped, because their account was erased before.';
"""

# Granted to nobody but their owner, as whom the commands act; an administrator may grant them to others.
_LETTING_GO = r"""
CREATE FUNCTION erase_account(account bigint, of_variant text, its_code integer, its_digest bytea)
RETURNS TABLE (place text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- As messages about broken rows quote them; the id alone could be any number.
    quoted text := '(account_id[^-0-9A-Za-z]{1,8})' || account || '(?![0-9])';
BEGIN
    -- Batches on their way are waited for; one that begins later reads that the account was erased.
    PERFORM pg_advisory_xact_lock(hashtextextended('erasure', 0));
    INSERT INTO public.erased_accounts (variant, code, digest) VALUES (of_variant, its_code, its_digest)
    ON CONFLICT DO NOTHING;
    place := 'churn_predictions';
    DELETE FROM public.churn_predictions AS p USING public.scoring_batches AS b
    WHERE p.account_id = account AND b.batch_id = p.batch_id AND b.scored_week = p.scored_week
      AND b.account_ids = 'input' AND of_variant IN ('', b.variant);
    GET DIAGNOSTICS n_rows = ROW_COUNT;
    RETURN NEXT;
    place := 'quarantined_rows';
    DELETE FROM public.quarantined_rows AS q USING public.scoring_batches AS b
    WHERE (q.account_id = account OR q.row ->> 'account_id' IN (account::text, account::text || '.0'))
      AND b.batch_id = q.batch_id AND b.account_ids = 'input' AND of_variant IN ('', b.variant);
    GET DIAGNOSTICS n_rows = ROW_COUNT;
    RETURN NEXT;
    place := 'messages';
    WITH attempts AS (
        UPDATE public.scoring_attempts SET error = regexp_replace(error, quoted, '\1erased', 'g')
        WHERE error ~ quoted AND of_variant IN ('', variant) RETURNING 1
    ), open_or_past AS (
        UPDATE public.incidents SET members = regexp_replace(members::text, quoted, '\1erased', 'g')::jsonb
        WHERE members::text ~ quoted RETURNING 1
    ), sent AS (
        UPDATE public.alerts SET body = regexp_replace(body, quoted, '\1erased', 'g') WHERE body ~ quoted RETURNING 1
    )
    SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM open_or_past) + (SELECT count(*) FROM sent)
    INTO n_rows;
    RETURN NEXT;
END $$;

CREATE FUNCTION drop_weeks(before date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    week date;
    partition name;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    FOR partition, week IN
        SELECT c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.churn_predictions'::regclass AND c.relname ~ '^churn_predictions_[0-9]{8}$'
        ORDER BY 2
    LOOP
        IF week < before THEN
            EXECUTE format('DROP TABLE public.%I', partition);
            RETURN NEXT week;
        END IF;
    END LOOP;
    DELETE FROM public.scoring_attempts WHERE scored_week < before;
    DELETE FROM public.scoring_batches WHERE scored_week < before;
END $$;
REVOKE ALL ON FUNCTION erase_account(bigint, text, integer, bytea), drop_weeks(date) FROM PUBLIC;
"""

_BODY_OF_OPEN = """
DECLARE
    partition text := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
BEGIN
    IF extract(isodow FROM week) <> 1 THEN
        RAISE EXCEPTION 'week % does not begin on a Monday', week;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF to_regclass(format('public.%I', partition)) IS NULL THEN
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.churn_predictions FOR VALUES IN (%L)', partition, week
        );
        EXECUTE format('GRANT SELECT, INSERT ON public.%I TO churn_writer', partition);
    END IF;
END
"""
_BODY_OF_INDEX = """
DECLARE
    week date;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    FOR week IN SELECT DISTINCT scored_week FROM public.scoring_batches WHERE scored_week + 7 <= today ORDER BY 1 LOOP
        partition := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
        IF to_regclass(format('public.%I', partition)) IS NOT NULL
           AND to_regclass(format('public.%I', partition || '_account')) IS NULL THEN
            EXECUTE format('CREATE INDEX %I ON public.%I (account_id)', partition || '_account', partition);
            RETURN NEXT week;
        END IF;
    END LOOP;
END
"""


def _weeks(path: str) -> str:
    """Make the writer's two functions anew; where ``public`` is searched, an overload made there could stand in."""
    head = f"LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path} AS"
    return (
        f"CREATE OR REPLACE FUNCTION open_week(week date) RETURNS void {head} $${_BODY_OF_OPEN}$$;"
        f"CREATE OR REPLACE FUNCTION index_closed_weeks(today date) RETURNS SETOF date {head} $${_BODY_OF_INDEX}$$;"
    )


def upgrade() -> None:
    """Add what letting go needs; nothing is let go of by it."""
    for statements in (_ERASED, _LETTING_GO, _weeks("pg_catalog, pg_temp")):
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    """Drop it, and with it what keeps erased accounts out."""
    op.get_bind().exec_driver_sql(_weeks("public, pg_temp").replace("%", "%%"))
    op.execute("DROP FUNCTION erase_account(bigint, text, integer, bytea), drop_weeks(date)")
    op.execute("ALTER TABLE scoring_batches DROP COLUMN n_rows_erased")
    op.execute("DROP TABLE erased_accounts, erasure_salt")
