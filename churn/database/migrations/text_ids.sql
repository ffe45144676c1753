-- Account ids that are text. Inside, an account stays a number of 64 bits; the text stands beside it.

-- The rule of churn.data.account_ids: whole numbers are themselves; other texts have a negative number, which is made of
-- their SHA-256; what is missing, or a number that is rounded or ambiguous, is no id.
CREATE FUNCTION churn_account_number(id text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    spaces CONSTANT text := '[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+';
    key text := regexp_replace(regexp_replace(id, '^' || spaces, ''), spaces || '$', '');
    whole text;
    number numeric;
BEGIN
    IF octet_length(convert_to(key, 'UTF8')) > 256 OR lower(key) IN (
        '', 'null', '\n', 'nan', '<na>', '(null)', 'na', 'n/a', '#n/a', 'nat', 'none', '-nan',
        'true', 'false', 'inf', '+inf', '-inf', 'infinity', '+infinity', '-infinity'
    ) THEN
        RETURN NULL;
    END IF;
    whole := regexp_replace(regexp_replace(key, '^\u2212', '-'), '^([-+]?[0-9]+)\.0*$', '\1');
    IF whole ~ '^[-+]?[0-9]+(\.[0-9]+)?[eE]\+?[0-9]{1,3}$' AND whole !~ '^[0-9]+[eE][0-9]+$' THEN
        number := whole::numeric;
        IF abs(number) < 1e11 AND number::float8 = trunc(number::float8) THEN
            RETURN number::bigint;
        END IF;
    ELSIF whole ~ '^[-+]?(0|[1-9][0-9]*)$' THEN
        number := whole::numeric;
        IF number BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
            RETURN number::bigint;
        END IF;
    END IF;
    IF key ~ ('^[-+\u2212]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+][0-9]+|[0-9]+,[0-9]+'
              '|[0-9]{1,3}([,.'' \u2019\u00a0\u202f][0-9]{3})+([.,][0-9]*)?)$|^(\{["}]|\[)') THEN
        RETURN NULL;
    END IF;
    RETURN ('x' || left(encode(sha256(convert_to(key, 'UTF8')), 'hex'), 16))::bit(64)::bigint
           | (-9223372036854775808)::bigint;
END $$;
COMMENT ON FUNCTION churn_account_number IS
    'The account_id of an id as a company writes it, a number or a text; null if it is no id.';

ALTER TABLE churn_predictions ADD COLUMN account_key text;
ALTER TABLE quarantined_rows ADD COLUMN account_key text;
SELECT grant_rows('churn_predictions');
SELECT grant_rows(inhrelid) FROM pg_inherits WHERE inhparent = 'churn_predictions'::regclass;
COMMENT ON COLUMN churn_predictions.account_key IS
    'The account''s id where it is a text, of which account_id is churn_account_number; null where it is a number.';
COMMENT ON COLUMN quarantined_rows.account_key IS 'As of churn_predictions.';

-- Erasure: of one variant, of a company's, or of all; it returns where the account was found.
DROP FUNCTION erase_account(bigint, text, integer, bytea);
CREATE FUNCTION erase_account(
    account bigint, of_scope text, its_code integer, its_digest bytea, quoted text DEFAULT NULL
) RETURNS TABLE (place text, n_rows bigint, variants text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- As messages about broken rows quote them; the id alone could be any number.
    pattern text := coalesce(quoted, '(account_id[^-0-9A-Za-z]{1,8})' || account || '(?![0-9])');
BEGIN
    -- Batches on their way are waited for; one that begins later reads that the account was erased.
    PERFORM pg_advisory_xact_lock(hashtextextended('erasure', 0));
    INSERT INTO public.erased_accounts (variant, code, digest) VALUES (of_scope, its_code, its_digest)
    ON CONFLICT DO NOTHING;
    place := 'churn_predictions';
    WITH deleted AS (
        DELETE FROM public.churn_predictions AS p USING public.scoring_batches AS b
        WHERE p.account_id = account AND b.batch_id = p.batch_id AND b.scored_week = p.scored_week
          AND b.account_ids = 'input' AND of_scope IN ('', b.variant, 'company=' || b.company)
        RETURNING b.variant
    )
    SELECT count(*), array_agg(DISTINCT variant) FROM deleted INTO n_rows, variants;
    RETURN NEXT;
    place := 'quarantined_rows';
    WITH deleted AS (
        DELETE FROM public.quarantined_rows AS q USING public.scoring_batches AS b
        WHERE (q.account_id = account
               OR q.account_id IS NULL AND public.churn_account_number(q.row ->> 'account_id') = account)
          AND b.batch_id = q.batch_id AND b.account_ids = 'input'
          AND of_scope IN ('', b.variant, 'company=' || b.company)
        RETURNING b.variant
    )
    SELECT count(*), array_agg(DISTINCT variant) FROM deleted INTO n_rows, variants;
    RETURN NEXT;
    place := 'messages';
    WITH attempts AS (
        UPDATE public.scoring_attempts SET error = regexp_replace(error, pattern, '\1erased', 'g')
        WHERE error ~ pattern
          AND of_scope IN ('', variant, 'company=' || substring(variant FROM '(?:^|[.])company-(.*)$'))
        RETURNING variant
    ), open_or_past AS (
        UPDATE public.incidents SET members = regexp_replace(members::text, pattern, '\1erased', 'g')::jsonb
        WHERE members::text ~ pattern RETURNING NULL
    ), sent AS (
        UPDATE public.alerts SET body = regexp_replace(body, pattern, '\1erased', 'g')
        WHERE body ~ pattern RETURNING NULL
    )
    SELECT count(*), array_agg(DISTINCT variant) FILTER (WHERE variant IS NOT NULL) FROM (
        SELECT variant FROM attempts UNION ALL SELECT NULL FROM open_or_past UNION ALL SELECT NULL FROM sent
    ) AS named
    INTO n_rows, variants;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION erase_account IS 'Erases an account and blocks it from later batches.';
COMMENT ON COLUMN erased_accounts.variant IS
    'The variant that the account was erased from, or company=<company> for all of a company; empty for all.';
REVOKE ALL ON FUNCTION erase_account(bigint, text, integer, bytea, text) FROM PUBLIC;

-- The views, with the id as the company writes it.

DO $do$
DECLARE
    view regclass;
BEGIN
    FOREACH view IN ARRAY ARRAY[
        'churn_predictions_by_role', 'churn_predictions_current', 'churn_predictions_latest'
    ]::regclass[]
    LOOP
        -- A column can be added behind the others only, so the views stay what they are.
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', view, regexp_replace(
            pg_get_viewdef(view), '\s+FROM \(*churn_predictions p\s',
            ', coalesce(p.account_key, p.account_id::text) AS account_key\&'
        ));
        EXECUTE format('COMMENT ON COLUMN %s.account_id IS %L', view,
            'The account''s number: its id, or churn_account_number of an id that is a text; the number of an input '
            'row if account_ids is row_number.');
        EXECUTE format('COMMENT ON COLUMN %s.account_key IS %L', view,
            'The account''s id as the company writes it, as text. Search by account_id, which has an index.');
    END LOOP;
END
$do$;
