-- Weeks are opened, indexed and dropped without stopping readers, or being stopped by one.

-- CREATE TABLE ... PARTITION OF locks the whole table against everybody; ATTACH PARTITION only against other DDL.
CREATE OR REPLACE FUNCTION open_week(week date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := 'churn_predictions_' || to_char(week, 'YYYYMMDD');
BEGIN
    IF extract(isodow FROM week) <> 1 THEN
        RAISE EXCEPTION 'week % does not begin on a Monday', week;
    END IF;
    IF week NOT BETWEEN current_date - 3653 AND current_date + 366 THEN
        RAISE EXCEPTION 'week % is not within ten years before and one year after today, %', week, current_date
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- First without waiting for an index of another week. Not by to_regclass, which remembers that it found nothing.
    IF EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = 'public'::regnamespace) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    IF NOT EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = 'public'::regnamespace) THEN
        EXECUTE format(
            'CREATE TABLE public.%I (LIKE public.churn_predictions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition
        );
        PERFORM public.grant_rows(format('public.%I', partition));
        EXECUTE format(
            'ALTER TABLE public.churn_predictions ATTACH PARTITION public.%I FOR VALUES IN (%L)', partition, week
        );
    END IF;
END
$$;

-- Readers queue behind a DROP TABLE that waits for another reader, so it gives up soon and is tried again. What takes
-- long, the records of the batches, is deleted before.
CREATE OR REPLACE FUNCTION drop_weeks(before date) RETURNS SETOF date
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '400ms' AS $$
DECLARE
    week date;
    partition name;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open_week', 0));
    DELETE FROM public.scoring_attempts WHERE scored_week < before;
    DELETE FROM public.scoring_batches WHERE scored_week < before;
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
END $$;

-- An index keeps no reader waiting, but who scores the week again.
ALTER FUNCTION index_closed_weeks(date) SET lock_timeout = '5s';
