-- Readers lock a view, then its tables. In the other order, a migration and a reader would wait for each other.
DO $$
DECLARE
    view name;
BEGIN
    FOR view IN SELECT viewname FROM pg_views WHERE schemaname = 'public' AND viewowner = current_user LOOP
        EXECUTE format('ALTER VIEW public.%I OWNER TO CURRENT_USER', view);
    END LOOP;
END
$$;
