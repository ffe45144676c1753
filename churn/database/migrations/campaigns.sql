-- Decisions: campaigns, their members and exposures, exclusions, and the lists that left the house.

-- An account is (company, account id); the company is empty for variants without one. Whatever stores accounts here takes
-- two advisory locks, always in this order: erasure's, shared, so that no account is erased meanwhile, then 'decisions',
-- exclusive to change who is on a list and shared to read one that is handed out.

CREATE TABLE campaigns (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,63}$'),
    variants text[] NOT NULL CHECK (cardinality(variants) > 0 AND array_position(variants, NULL) IS NULL),
    policy text NOT NULL CHECK (policy IN ('risk', 'value_at_risk')),
    floor double precision CHECK (floor > '-Infinity' AND floor < 'Infinity'),
    top_share double precision CHECK (top_share > 0 AND top_share <= 1),
    budget integer CHECK (budget > 0),
    control_share double precision NOT NULL CHECK (control_share >= 0 AND control_share < 1),
    holdout_share double precision NOT NULL CHECK (holdout_share >= 0 AND holdout_share < 1),
    allows_overlap boolean NOT NULL DEFAULT false,
    starts_on date NOT NULL,
    channel text NOT NULL CHECK (channel <> ''),
    note text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL DEFAULT session_user,
    selected_at timestamptz,
    selected_by text,
    closed_at timestamptz,
    closed_by text
);
COMMENT ON TABLE campaigns IS 'Campaigns: who may be contacted, by which rule, and who decided so.';
COMMENT ON COLUMN campaigns.policy IS
    'Accounts at risk are ranked by risk, the score, or by value_at_risk, the score times the expected net revenue.';
COMMENT ON COLUMN campaigns.floor IS 'Lowest score, or value at risk, of a member; null for no floor.';
COMMENT ON COLUMN campaigns.top_share IS 'Share of each variant''s ranked accounts that may be members; null for all.';
COMMENT ON COLUMN campaigns.budget IS 'Most accounts that are offered something, over all variants; null for no limit.';
COMMENT ON COLUMN campaigns.control_share IS 'Share of the members, drawn at random, that is not contacted.';
COMMENT ON COLUMN campaigns.holdout_share IS 'Share of all accounts that no campaign contacts, the same in every one.';
COMMENT ON COLUMN campaigns.allows_overlap IS 'Whether accounts in other open campaigns may be members.';
COMMENT ON COLUMN campaigns.selected_at IS 'When the members were drawn, once and for all; null before.';
COMMENT ON COLUMN campaigns.closed_at IS 'When the campaign ended; null while it is open.';

CREATE TABLE campaign_members (
    campaign text NOT NULL REFERENCES campaigns,
    company text NOT NULL,
    account_id bigint NOT NULL,
    account_key text,
    variant text NOT NULL,
    week date NOT NULL,
    batch bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    arm text NOT NULL CHECK (arm IN ('offered', 'control', 'held_out')),
    score real NOT NULL,
    value_at_risk double precision,
    propensity double precision NOT NULL CHECK (propensity >= 0 AND propensity <= 1),
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz,
    removed_why text,
    PRIMARY KEY (campaign, company, account_id),
    CHECK ((removed_at IS NULL) = (removed_why IS NULL))
);
CREATE INDEX campaign_members_account ON campaign_members (company, account_id);
CREATE INDEX campaign_members_batch ON campaign_members (batch);
COMMENT ON TABLE campaign_members IS
    'Accounts above a campaign''s cut, each in one arm for good. Weeks that are dropped take theirs along.';
COMMENT ON COLUMN campaign_members.company IS 'Company of the variant; empty if it has none.';
COMMENT ON COLUMN campaign_members.account_key IS 'As of churn_predictions.';
COMMENT ON COLUMN campaign_members.week IS 'The scored week that it was selected from.';
COMMENT ON COLUMN campaign_members.batch IS 'The batch in scoring_batches that has its score.';
COMMENT ON COLUMN campaign_members.arm IS
    'offered: on the list; control: drawn not to be contacted by this campaign; held_out: contacted by no campaign.';
COMMENT ON COLUMN campaign_members.score IS 'Churn probability when it was selected.';
COMMENT ON COLUMN campaign_members.value_at_risk IS
    'Score times the expected net revenue over the horizon; null if the policy is risk.';
COMMENT ON COLUMN campaign_members.propensity IS
    'Its own probability of staying untreated: h + (1 - h) c, of holdout share h and control share c.';
COMMENT ON COLUMN campaign_members.removed_at IS 'When it left the list; its arm stays. Null while it is on it.';
COMMENT ON COLUMN campaign_members.removed_why IS 'Why it left: excluded.';

CREATE TABLE campaign_exposures (
    campaign text NOT NULL,
    company text NOT NULL,
    account_id bigint NOT NULL,
    exposed_at timestamptz NOT NULL,
    channel text NOT NULL,
    delivered boolean NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_by text NOT NULL DEFAULT session_user,
    PRIMARY KEY (campaign, company, account_id, exposed_at, channel),
    FOREIGN KEY (campaign, company, account_id) REFERENCES campaign_members ON DELETE CASCADE
);
COMMENT ON TABLE campaign_exposures IS 'Contacts that were made, as reported; rows are only added.';
COMMENT ON COLUMN campaign_exposures.delivered IS 'Whether the contact reached the account.';

CREATE TABLE exclusions (
    exclusion_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    company text NOT NULL,
    account_id bigint NOT NULL,
    reason text NOT NULL CHECK (reason IN ('objection', 'harm', 'self-excluded', 'other')),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    until date,
    excluded_by text NOT NULL DEFAULT session_user,
    revoked_at timestamptz,
    revoked_by text,
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX exclusions_account ON exclusions (company, account_id) WHERE revoked_at IS NULL;
COMMENT ON TABLE exclusions IS
    'Accounts that no list may hold. Rows are only added, and revoked once; erasure alone deletes them.';
COMMENT ON COLUMN exclusions.company IS 'The company whose account it is; empty for variants without one.';
COMMENT ON COLUMN exclusions.reason IS 'The class of the reason; nothing else about it is stored.';
COMMENT ON COLUMN exclusions.until IS 'The last day, UTC, on which it holds; null for ever.';

CREATE TABLE list_exports (
    export_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign text REFERENCES campaigns,
    variant text,
    week date,
    n bigint NOT NULL,
    left_out jsonb NOT NULL,
    file text NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    exported_by text NOT NULL DEFAULT session_user,
    CHECK ((campaign IS NULL) <> (variant IS NULL))
);
COMMENT ON TABLE list_exports IS
    'Lists that left the house: recorded before the file appears, so that no file is without its row.';
COMMENT ON COLUMN list_exports.campaign IS 'The campaign whose list it is; null for the list of a variant.';
COMMENT ON COLUMN list_exports.n IS 'Accounts on the list.';
COMMENT ON COLUMN list_exports.left_out IS 'How many accounts are not on it, by why.';
COMMENT ON COLUMN list_exports.file IS 'Name of the file that it was written to.';

CREATE TABLE list_members (
    export_id bigint NOT NULL REFERENCES list_exports,
    company text NOT NULL,
    account_id bigint NOT NULL,
    batch bigint NOT NULL REFERENCES scoring_batches ON DELETE CASCADE,
    arm text NOT NULL CHECK (arm IN ('offered', 'held_out')),
    holdout_share double precision NOT NULL,
    PRIMARY KEY (export_id, company, account_id)
);
CREATE INDEX list_members_account ON list_members (company, account_id);
CREATE INDEX list_members_batch ON list_members (batch);
COMMENT ON TABLE list_members IS
    'Accounts within reach of an exported list of a variant. Weeks that are dropped take theirs along.';
COMMENT ON COLUMN list_members.export_id IS 'The export in list_exports.';
COMMENT ON COLUMN list_members.company IS 'Company of the variant; empty if it has none.';
COMMENT ON COLUMN list_members.batch IS 'The batch in scoring_batches that the list is of.';
COMMENT ON COLUMN list_members.arm IS 'offered: on the list; held_out: on none, though its score is high enough.';
COMMENT ON COLUMN list_members.holdout_share IS 'Share of all accounts that was held out then.';

-- What only the functions below read.

CREATE VIEW exclusions_in_force AS
    SELECT DISTINCT company, account_id FROM exclusions
    WHERE revoked_at IS NULL AND (until IS NULL OR until >= (now() AT TIME ZONE 'UTC')::date);
COMMENT ON VIEW exclusions_in_force IS 'Accounts that no list may hold today.';

CREATE FUNCTION decision_number(salt text, company text, account bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || substr(md5(salt || ':' || company || ':' || account::text), 1, 8))::bit(32)::bigint / 4294967296.0::float8
$$;
COMMENT ON FUNCTION decision_number IS 'A number in [0, 1) that stands for an account under a salt for good.';

CREATE FUNCTION decision_salt(purpose text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sha256(salt || convert_to('decisions:' || purpose, 'UTF8')), 'hex') FROM public.erasure_salt
$$;
COMMENT ON FUNCTION decision_salt IS 'A salt that never changes, made of the database''s secret one.';

CREATE FUNCTION lock_decisions(to_change boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('erasure', 0));
    IF to_change THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('decisions', 0));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('decisions', 0));
    END IF;
END
$$;
COMMENT ON FUNCTION lock_decisions IS 'Takes the locks of what stores accounts on lists, in their one order.';

CREATE FUNCTION refuse(message text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', message USING ERRCODE = 'CH001';
END
$$;
COMMENT ON FUNCTION refuse IS 'Refuses what was asked for, in a sentence for people.';

CREATE FUNCTION require_lists(of_variants text[], of_week date DEFAULT NULL) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text;
    n bigint;
BEGIN
    SELECT string_agg(format('%s %s', variant, why), '; ' ORDER BY variant) FILTER (WHERE place <= 5), count(*)
    INTO wrong, n FROM (
        SELECT variant, why, row_number() OVER (ORDER BY variant) AS place FROM (
            SELECT v.variant, CASE
                WHEN b.batch_id IS NULL THEN 'has no current predictions' || coalesce(' of ' || of_week, '')
                WHEN b.account_ids <> 'input' THEN 'was scored from rows without account ids'
                WHEN b.is_sample OR b.source_variant <> b.variant THEN 'was not scored from activity of its own'
                WHEN b.at_risk_since IS NULL THEN 'has no activity new enough to know who is at risk' END AS why
            FROM unnest(of_variants) AS v (variant) LEFT JOIN LATERAL (
                SELECT * FROM public.scoring_batches AS s WHERE s.variant = v.variant AND s.is_current
                  AND s.role = 'champion' AND (of_week IS NULL OR s.scored_week = of_week)
                ORDER BY s.scored_week DESC LIMIT 1
            ) AS b ON true
        ) AS each WHERE why IS NOT NULL
    ) AS numbered;
    IF n > 0 THEN
        PERFORM public.refuse(format('no list can be made of %s of %s variants: %s%s; score them, or leave them out', n,
            cardinality(of_variants), wrong, CASE WHEN n > 5 THEN '; …' ELSE '' END));
    END IF;
END
$$;
COMMENT ON FUNCTION require_lists IS 'Refuses unless it is known of each variant who is at risk.';

-- To be inlined, so that other partitions are left out: no owner's rights and no settings of its own.
CREATE FUNCTION accounts_at_risk(of_variants text[], of_week date)
RETURNS TABLE (variant text, company text, account_id bigint, account_key text, score real, week date, batch bigint)
LANGUAGE sql STABLE AS $$
    SELECT b.variant, coalesce(b.company, ''), p.account_id, p.account_key, p.churn_probability, p.scored_week,
           p.batch_id
    FROM public.scoring_batches AS b
    JOIN public.churn_predictions AS p ON p.batch_id = b.batch_id
    WHERE b.is_current AND b.variant = ANY(of_variants) AND b.scored_week = of_week AND p.scored_week = of_week
    AND p.last_active_month >= b.at_risk_since AND (b.role = 'champion' OR b.ab_share > 0)
    AND (b.role = 'champion') <> (
        b.ab_share > 0 AND public.churn_is_assigned(p.account_id, b.ab_salt, b.ab_share)
    )
$$;
COMMENT ON FUNCTION accounts_at_risk IS 'The accounts at risk of a week, with the scores that they are served.';

-- Campaigns.

CREATE FUNCTION create_campaign(described jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n public.campaigns := jsonb_populate_record(NULL::public.campaigns, described);
    there public.campaigns;
BEGIN
    PERFORM public.lock_decisions(true);
    SELECT * INTO there FROM public.campaigns WHERE name = n.name;
    IF FOUND THEN
        IF (to_jsonb(there) - '{created_at,created_by,selected_at,selected_by,closed_at,closed_by}'::text[])
           <> (to_jsonb(n) - '{created_at,created_by,selected_at,selected_by,closed_at,closed_by}'::text[]) THEN
            PERFORM public.refuse(format('campaign %s exists and is defined otherwise; take another name', n.name));
        END IF;
        RETURN false;
    END IF;
    INSERT INTO public.campaigns (
        name, variants, policy, floor, top_share, budget, control_share, holdout_share, allows_overlap, starts_on,
        channel, note, created_at
    ) VALUES (
        n.name, n.variants, n.policy, n.floor, n.top_share, n.budget, n.control_share, n.holdout_share,
        n.allows_overlap, n.starts_on, n.channel, n.note, public.churn_now()
    );
    RETURN true;
END
$$;
COMMENT ON FUNCTION create_campaign IS 'Adds a campaign; returns whether it is new. Another of its name is refused.';

-- Rows are added by the caller, and the table is the owner's, so that nothing of the caller's runs with its rights.
CREATE FUNCTION stage_revenue() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('pg_temp.staged_revenue') IS NULL THEN
        CREATE TEMPORARY TABLE staged_revenue (variant text, account_id bigint, revenue double precision)
        ON COMMIT DROP;
        GRANT INSERT ON pg_temp.staged_revenue TO churn_writer;
    ELSIF NOT EXISTS (
        SELECT FROM pg_class WHERE oid = to_regclass('pg_temp.staged_revenue') AND relkind = 'r'
          AND relowner = current_user::regrole
    ) THEN
        PERFORM public.refuse('the session has a table staged_revenue of its own; drop it');
    END IF;
END
$$;
COMMENT ON FUNCTION stage_revenue IS
    'Makes the session''s table of expected net revenue over the horizon, for a campaign by value at risk.';

CREATE FUNCTION select_members(of_campaign text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET work_mem = '128MB' SET enable_nestloop = off AS $$
DECLARE
    c public.campaigns;
    holdout text := public.decision_salt('holdout');
    control text := public.decision_salt('control of ' || of_campaign);
    lacking text;
    newest record;
BEGIN
    PERFORM public.lock_decisions(true);
    SELECT * INTO c FROM public.campaigns WHERE name = of_campaign;
    IF c.name IS NULL THEN
        PERFORM public.refuse(format('there is no campaign %s', of_campaign));
    ELSIF c.selected_at IS NOT NULL THEN
        RETURN false;
    ELSIF c.closed_at IS NOT NULL THEN
        PERFORM public.refuse(format('campaign %s is closed', of_campaign));
    END IF;
    PERFORM public.require_lists(c.variants);
    PERFORM public.stage_revenue();
    ANALYZE pg_temp.staged_revenue;
    IF c.policy = 'value_at_risk' THEN
        SELECT string_agg(v, ', ' ORDER BY v) INTO lacking FROM unnest(c.variants) AS v
        WHERE NOT EXISTS (SELECT FROM pg_temp.staged_revenue AS r WHERE r.variant = v);
        IF lacking IS NOT NULL THEN
            PERFORM public.refuse(format('no expected revenue is known of %s; select by risk', lacking));
        END IF;
    END IF;
    -- With its size known, what follows is planned for millions as for thousands.
    CREATE TEMPORARY TABLE staged_accounts ON COMMIT DROP AS
        SELECT * FROM public.accounts_at_risk('{}', '-infinity');
    FOR newest IN
        SELECT n.week, array_agg(n.variant) AS variants FROM (
            SELECT variant, max(scored_week) AS week FROM public.scoring_batches
            WHERE is_current AND variant = ANY(c.variants) GROUP BY variant
        ) AS n GROUP BY n.week
    LOOP
        INSERT INTO pg_temp.staged_accounts SELECT * FROM public.accounts_at_risk(newest.variants, newest.week);
    END LOOP;
    ANALYZE pg_temp.staged_accounts;
    INSERT INTO public.campaign_members (
        campaign, company, account_id, account_key, variant, week, batch, arm, score, value_at_risk, propensity,
        added_at
    )
    WITH mean AS (
        SELECT r.variant, avg(r.revenue) AS revenue FROM pg_temp.staged_revenue AS r GROUP BY r.variant
    ), valued AS (
        SELECT a.*, a.score * coalesce(r.revenue, m.revenue) AS value
        FROM pg_temp.staged_accounts AS a
        LEFT JOIN mean AS m ON m.variant = a.variant
        LEFT JOIN pg_temp.staged_revenue AS r ON r.variant = a.variant AND r.account_id = a.account_id
    ), measured AS (
        SELECT v.*, CASE c.policy WHEN 'risk' THEN v.score ELSE v.value END AS measure FROM valued AS v
        WHERE NOT EXISTS (
            SELECT FROM public.exclusions_in_force AS e WHERE e.company = v.company AND e.account_id = v.account_id
        ) AND (c.allows_overlap OR NOT EXISTS (
            SELECT FROM public.campaign_members AS m JOIN public.campaigns AS o ON o.name = m.campaign
            WHERE m.company = v.company AND m.account_id = v.account_id AND m.arm <> 'held_out'
              AND o.closed_at IS NULL AND o.name <> c.name
        ))
    ), candidates AS ( -- an account that several variants of its company score counts once
        SELECT DISTINCT ON (company, account_id) * FROM measured
        ORDER BY company, account_id, measure DESC, variant
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY variant ORDER BY measure DESC, account_id) AS place,
               count(*) OVER (PARTITION BY variant) AS n_of_variant
        FROM candidates
    ), drawn AS (
        SELECT *, CASE
            WHEN public.decision_number(holdout, company, account_id) < c.holdout_share THEN 'held_out'
            WHEN public.decision_number(control, company, account_id) < c.control_share THEN 'control'
            ELSE 'offered' END AS arm
        FROM ranked WHERE (c.floor IS NULL OR measure >= c.floor)
          AND (c.top_share IS NULL OR place <= ceil(c.top_share::numeric * n_of_variant))
    ), counted AS (
        SELECT *, count(*) FILTER (WHERE arm = 'offered') OVER (
            ORDER BY measure DESC, company, account_id ROWS UNBOUNDED PRECEDING
        ) AS n_offered FROM drawn
    )
    SELECT c.name, company, account_id, account_key, variant, week, batch, arm, score, value,
           c.holdout_share + (1 - c.holdout_share) * c.control_share, clock
    FROM counted, public.churn_now() AS clock
    -- The cut is at the last account that the budget reaches.
    WHERE c.budget IS NULL OR n_offered < c.budget OR n_offered = c.budget AND arm = 'offered';
    UPDATE public.campaigns SET selected_at = public.churn_now(), selected_by = session_user WHERE name = c.name;
    RETURN true;
END
$$;
COMMENT ON FUNCTION select_members IS
    'Draws the members of a campaign from each variant''s newest week, once; returns whether it did so now.';

CREATE FUNCTION close_campaign(of_campaign text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.lock_decisions(true);
    IF NOT EXISTS (SELECT FROM public.campaigns WHERE name = of_campaign) THEN
        PERFORM public.refuse(format('there is no campaign %s', of_campaign));
    END IF;
    UPDATE public.campaigns SET closed_at = public.churn_now(), closed_by = session_user
    WHERE name = of_campaign AND closed_at IS NULL;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION close_campaign IS 'Ends a campaign; returns whether it was open.';

-- Exclusions.

CREATE FUNCTION exclude_accounts(
    companies text[], accounts bigint[], reasons text[], untils date[],
    OUT n_new bigint, OUT n_removed bigint, OUT n_lists bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.lock_decisions(true);
    IF array_position(companies, NULL) IS NOT NULL AND EXISTS (
        SELECT FROM public.scoring_batches WHERE is_current AND company IS NOT NULL
    ) THEN
        PERFORM public.refuse('accounts are a company''s own: name the company, or give an empty one for the accounts '
            'of variants without a company');
    END IF;
    WITH given AS (
        SELECT DISTINCT coalesce(company, '') AS company, account, reason, until
        FROM unnest(companies, accounts, reasons, untils) AS g (company, account, reason, until)
    ), added AS (
        INSERT INTO public.exclusions (company, account_id, reason, until, since)
        SELECT g.company, g.account, g.reason, g.until, public.churn_now() FROM given AS g
        WHERE NOT EXISTS (
            SELECT FROM public.exclusions AS e WHERE e.company = g.company AND e.account_id = g.account
              AND e.reason = g.reason AND e.revoked_at IS NULL AND (e.until IS NULL OR e.until >= g.until)
        ) RETURNING NULL
    )
    SELECT count(*) INTO n_new FROM added;
    WITH removed AS (
        UPDATE public.campaign_members AS m SET removed_at = public.churn_now(), removed_why = 'excluded'
        FROM public.campaigns AS c, public.exclusions_in_force AS e
        WHERE c.name = m.campaign AND c.closed_at IS NULL AND m.removed_at IS NULL AND e.company = m.company
          AND e.account_id = m.account_id AND m.account_id = ANY(accounts)
        RETURNING m.campaign, m.arm
    )
    SELECT count(*), count(DISTINCT campaign) INTO n_removed, n_lists FROM removed WHERE arm = 'offered';
END
$$;
COMMENT ON FUNCTION exclude_accounts IS
    'Excludes accounts from all lists; returns how many exclusions are new, and how many accounts left how many lists.';

CREATE FUNCTION revoke_exclusions(companies text[], accounts bigint[], of_reasons text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n bigint;
BEGIN
    PERFORM public.lock_decisions(true);
    UPDATE public.exclusions AS e SET revoked_at = public.churn_now(), revoked_by = session_user
    FROM (SELECT DISTINCT * FROM unnest(companies, accounts, of_reasons)) AS g (company, account, reason)
    WHERE e.company = coalesce(g.company, '') AND e.account_id = g.account AND e.reason = g.reason
      AND e.revoked_at IS NULL;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$$;
COMMENT ON FUNCTION revoke_exclusions IS 'Ends exclusions of one reason; returns how many. Lists stay as they are.';

-- Exposures.

CREATE FUNCTION parse_instant(written text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    RETURN CASE WHEN written ~ '^\d{4}-\d\d-\d\d' THEN written::timestamptz END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION parse_instant IS 'An instant as ISO 8601 writes it, UTC without an offset; null if it is none.';

CREATE FUNCTION record_exposures(contacts jsonb) RETURNS TABLE (rule text, row_numbers bigint[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.lock_decisions(true);
    RETURN QUERY WITH given AS (
        SELECT coalesce((g ->> 'row_number')::bigint, place) AS row_number, g ->> 'campaign' AS campaign,
               public.churn_account_number(g ->> 'account_id') AS account, g ->> 'company' AS company,
               public.parse_instant(g ->> 'exposed_at') AS exposed_at, nullif(g ->> 'channel', '') AS channel,
               CASE WHEN lower(g ->> 'delivered') IN ('true', 't', 'yes', '1') THEN true
                    WHEN lower(g ->> 'delivered') IN ('false', 'f', 'no', '0') THEN false END AS delivered,
               coalesce(g ->> 'delivered', '') = '' AS is_undelivered_unknown
        FROM jsonb_array_elements(contacts) WITH ORDINALITY AS j (g, place)
    ), matched AS (
        SELECT g.*, c.name AS known, c.channel AS usual, m.company AS of_company, m.added_at,
               count(m.account_id) OVER (PARTITION BY g.row_number) AS n_matches
        FROM given AS g LEFT JOIN public.campaigns AS c ON c.name = g.campaign
        LEFT JOIN public.campaign_members AS m ON m.campaign = g.campaign AND m.account_id = g.account
             AND (g.company IS NULL OR m.company = g.company)
    ), ruled AS (
        SELECT *, CASE
            WHEN known IS NULL THEN 'campaign_unknown'
            WHEN account IS NULL THEN 'account_id_invalid'
            WHEN n_matches = 0 THEN 'account_not_in_campaign'
            WHEN n_matches > 1 THEN 'company_missing'
            WHEN exposed_at IS NULL THEN 'exposed_at_invalid'
            WHEN exposed_at > public.churn_now() THEN 'exposed_at_in_future'
            WHEN exposed_at < added_at - interval '1 day' THEN 'exposed_at_before_selection'
            WHEN delivered IS NULL AND NOT is_undelivered_unknown THEN 'delivered_invalid' END AS broken
        FROM matched
    ), added AS (
        INSERT INTO public.campaign_exposures (campaign, company, account_id, exposed_at, channel, delivered, recorded_at)
        SELECT known, of_company, account, exposed_at, coalesce(channel, usual), coalesce(delivered, true),
               public.churn_now()
        FROM ruled WHERE broken IS NULL ON CONFLICT DO NOTHING
    )
    SELECT broken, array_agg(DISTINCT row_number) FROM ruled GROUP BY broken;
END
$$;
COMMENT ON FUNCTION record_exposures IS
    'Records contacts, an array of {account_id, campaign, exposed_at, channel, delivered, company}; the last three may '
    'be missing. Returns the rows that break a rule, and those that are recorded under a null.';

-- Lists.

CREATE VIEW campaign_targets AS
SELECT m.campaign, m.variant, m.company, coalesce(m.account_key, m.account_id::text) AS account_id, m.score,
       m.value_at_risk, m.week AS scored_week, m.batch AS batch_id, c.channel, c.starts_on, m.added_at
FROM campaign_members AS m JOIN campaigns AS c ON c.name = m.campaign
WHERE m.arm = 'offered' AND m.removed_at IS NULL AND c.closed_at IS NULL AND NOT EXISTS (
    SELECT FROM exclusions_in_force AS e WHERE e.company = m.company AND e.account_id = m.account_id
);
COMMENT ON VIEW campaign_targets IS 'Whom the open campaigns contact: one row for each campaign and account.';
COMMENT ON COLUMN campaign_targets.account_id IS 'The account''s id as the company writes it.';
COMMENT ON COLUMN campaign_targets.score IS 'Churn probability when it was selected.';
COMMENT ON COLUMN campaign_targets.value_at_risk IS 'As of campaign_members.';

CREATE VIEW own_campaign_targets WITH (security_barrier) AS
SELECT own_value(t.campaign) AS campaign, own_value(t.variant) AS variant, own_value(t.company) AS company,
       own_value(t.account_id) AS account_id, own_value(t.score) AS score, own_value(t.value_at_risk) AS value_at_risk,
       own_value(t.scored_week) AS scored_week, own_value(t.batch_id) AS batch_id, own_value(t.channel) AS channel,
       own_value(t.starts_on) AS starts_on, own_value(t.added_at) AS added_at
FROM campaign_targets AS t
WHERE t.variant IN (SELECT g.variant FROM reader_variants AS g WHERE g.reader = session_user);
COMMENT ON VIEW own_campaign_targets IS 'The rows of campaign_targets of the variants that the login is bound to.';

CREATE VIEW campaign_summary AS
SELECT c.*, coalesce(m.n_offered, 0) AS n_offered, coalesce(m.n_control, 0) AS n_control,
       coalesce(m.n_held_out, 0) AS n_held_out, coalesce(m.n_removed, 0) AS n_removed,
       coalesce(e.n_exposed, 0) AS n_exposed, coalesce(e.n_control_exposed, 0) AS n_control_exposed,
       coalesce(e.n_removed_exposed, 0) AS n_removed_exposed, coalesce(x.n_exports, 0) AS n_exports
FROM campaigns AS c LEFT JOIN (
    SELECT campaign, count(*) FILTER (WHERE arm = 'offered') AS n_offered,
           count(*) FILTER (WHERE arm = 'control') AS n_control,
           count(*) FILTER (WHERE arm = 'held_out') AS n_held_out,
           count(*) FILTER (WHERE arm = 'offered' AND removed_at IS NOT NULL) AS n_removed
    FROM campaign_members GROUP BY campaign
) AS m ON m.campaign = c.name LEFT JOIN (
    SELECT e.campaign, count(DISTINCT (e.company, e.account_id)) FILTER (WHERE m.arm = 'offered') AS n_exposed,
           count(DISTINCT (e.company, e.account_id)) FILTER (WHERE m.arm <> 'offered') AS n_control_exposed,
           count(DISTINCT (e.company, e.account_id)) FILTER (WHERE e.exposed_at > m.removed_at) AS n_removed_exposed
    FROM campaign_exposures AS e JOIN campaign_members AS m USING (campaign, company, account_id)
    WHERE e.delivered GROUP BY e.campaign
) AS e ON e.campaign = c.name LEFT JOIN (
    SELECT campaign, count(*) AS n_exports FROM list_exports GROUP BY campaign
) AS x ON x.campaign = c.name;
COMMENT ON VIEW campaign_summary IS 'Each campaign with the numbers of its members, contacts and exports.';

CREATE FUNCTION holdout_share(of_variant text) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT c.holdout_share FROM public.campaigns AS c WHERE of_variant = ANY(c.variants)
        ORDER BY c.created_at DESC LIMIT 1
    ), 0)
$$;
COMMENT ON FUNCTION holdout_share IS 'The share of a variant''s accounts on no list; 0 before its first campaign.';

CREATE FUNCTION accounts_of_list(of_variant text, of_week date)
RETURNS TABLE (account_id bigint, account_key text, score real, why text)
LANGUAGE sql STABLE AS $$
    SELECT a.account_id, a.account_key, a.score, CASE
        WHEN EXISTS (
            SELECT FROM public.exclusions_in_force AS e WHERE e.company = a.company AND e.account_id = a.account_id
        ) THEN 'excluded'
        WHEN public.decision_number(salt, a.company, a.account_id) < share THEN 'held out'
        WHEN EXISTS (
            SELECT FROM public.campaign_members AS m JOIN public.campaigns AS c ON c.name = m.campaign
            WHERE m.company = a.company AND m.account_id = a.account_id AND m.arm = 'control' AND c.closed_at IS NULL
            OFFSET 0 -- looked up for each account, not by reading all members of the fleet's campaigns
        ) THEN 'control of an open campaign' END
    FROM public.accounts_at_risk(ARRAY[of_variant], of_week) AS a,
         (SELECT public.decision_salt('holdout') AS salt, public.holdout_share(of_variant) AS share OFFSET 0) AS known
$$;
COMMENT ON FUNCTION accounts_of_list IS
    'The accounts at risk of a variant''s week, and why one may be on no list outside of campaigns; null if it may.';

CREATE FUNCTION variant_list(of_variant text, of_week date, top integer)
RETURNS TABLE (
    place bigint, rise_place bigint, account_id text, score real, score_before real, rise real, arm text
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET work_mem = '64MB' SET enable_seqscan = off AS $$
    WITH listed AS (
        SELECT l.*, (l.why IS NOT NULL)::integer AS is_held_out FROM public.accounts_of_list(of_variant, of_week) AS l
        WHERE l.why IS NULL OR l.why = 'held out'
    ), before AS (
        SELECT b.account_id, b.score FROM public.accounts_at_risk(ARRAY[of_variant], of_week - 7) AS b
    ), ranked AS (
        SELECT l.account_id, l.account_key, l.is_held_out, l.score, b.score AS score_before, l.score - b.score AS rise,
               sum(1 - l.is_held_out) OVER (ORDER BY l.score DESC, l.account_id) AS place,
               sum(1 - l.is_held_out) OVER (ORDER BY l.score - b.score DESC NULLS LAST, l.account_id) AS rise_place
        FROM listed AS l LEFT JOIN before AS b USING (account_id)
    )
    SELECT r.place, CASE WHEN r.rise > 0 THEN r.rise_place END, coalesce(r.account_key, r.account_id::text), r.score,
           r.score_before, r.rise, CASE r.is_held_out WHEN 0 THEN 'offered' ELSE 'held_out' END
    FROM ranked AS r
    WHERE r.place <= top - r.is_held_out OR r.rise_place <= top - r.is_held_out AND r.rise > 0
    ORDER BY r.place, r.is_held_out
$$;
COMMENT ON FUNCTION variant_list IS
    'The accounts of a variant''s week that may be contacted, with the highest scores or the largest rises of the score '
    'since the week before: as many of each as asked for. With them, those held out that would be on the list.';

CREATE FUNCTION variant_left_out(of_variant text, of_week date) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    SELECT coalesce(jsonb_object_agg(why, n), '{}') FROM (
        SELECT l.why, count(*) AS n FROM public.accounts_of_list(of_variant, of_week) AS l
        WHERE l.why IS NOT NULL GROUP BY l.why
    ) AS counted
$$;
COMMENT ON FUNCTION variant_left_out IS 'How many accounts at risk are not on the list of a variant''s week, by why.';

CREATE FUNCTION record_export(
    of_campaign text, of_variant text, of_week date, n bigint, left_out jsonb, file text, accounts text[], arms text[]
)
RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH export AS (
        INSERT INTO public.list_exports (campaign, variant, week, n, left_out, file, exported_at)
        VALUES (of_campaign, of_variant, of_week, n, left_out, file, public.churn_now()) RETURNING export_id
    ), members AS (
        INSERT INTO public.list_members (export_id, company, account_id, batch, arm, holdout_share)
        SELECT export_id, coalesce(b.company, ''), public.churn_account_number(m.account), b.batch_id, m.arm,
               public.holdout_share(of_variant)
        FROM export, unnest(accounts, arms) AS m (account, arm), public.scoring_batches AS b
        WHERE b.variant = of_variant AND b.scored_week = of_week AND b.is_current AND b.role = 'champion'
    )
    SELECT export_id FROM export
$$;
COMMENT ON FUNCTION record_export IS
    'Records that the caller''s login exported a list, and of a variant''s, which has no campaign, the accounts.';

-- Erasure.

CREATE FUNCTION erase_decisions(account bigint, of_scope text)
RETURNS TABLE (place text, n_rows bigint, variants text[], why_left text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('erasure', 0));
    RETURN QUERY
    SELECT format('list %s, exported by %s on %s', x.file, x.exported_by, x.exported_at::date), 1::bigint,
           ARRAY[m.variant], format('a file that left the house%s; whoever received it must remove the account',
               CASE WHEN x.campaign IS NULL THEN '' ELSE ', of campaign ' || x.campaign END)
    FROM public.list_exports AS x JOIN public.campaign_members AS m USING (campaign)
    WHERE m.account_id = account AND m.arm = 'offered' AND of_scope IN ('', m.variant, 'company=' || m.company)
      AND m.added_at <= x.exported_at AND (m.removed_at IS NULL OR m.removed_at > x.exported_at)
    UNION ALL
    SELECT format('list %s, exported by %s on %s', x.file, x.exported_by, x.exported_at::date), 1::bigint,
           ARRAY[x.variant], 'a file that left the house; whoever received it must remove the account'
    FROM public.list_exports AS x JOIN public.list_members AS m USING (export_id)
    WHERE m.account_id = account AND m.arm = 'offered' AND of_scope IN ('', x.variant, 'company=' || m.company);
    why_left := '';
    place := 'campaign_exposures';
    SELECT count(*), array_agg(DISTINCT m.variant) INTO n_rows, variants
    FROM public.campaign_exposures AS e JOIN public.campaign_members AS m USING (campaign, company, account_id)
    WHERE m.account_id = account AND of_scope IN ('', m.variant, 'company=' || m.company);
    IF n_rows > 0 THEN
        RETURN NEXT;
    END IF;
    place := 'campaign_members';
    WITH deleted AS (
        DELETE FROM public.campaign_members AS m
        WHERE m.account_id = account AND of_scope IN ('', m.variant, 'company=' || m.company) RETURNING m.variant
    )
    SELECT count(*), array_agg(DISTINCT d.variant) INTO n_rows, variants FROM deleted AS d;
    IF n_rows > 0 THEN
        RETURN NEXT;
    END IF;
    place := 'list_members';
    WITH deleted AS (
        DELETE FROM public.list_members AS m USING public.list_exports AS x
        WHERE x.export_id = m.export_id AND m.account_id = account
          AND of_scope IN ('', x.variant, 'company=' || m.company) RETURNING x.variant
    )
    SELECT count(*), array_agg(DISTINCT d.variant) INTO n_rows, variants FROM deleted AS d;
    IF n_rows > 0 THEN
        RETURN NEXT;
    END IF;
    -- Those of one variant stay: the account is on no list of the company's other variants.
    place := 'exclusions';
    variants := NULL;
    DELETE FROM public.exclusions AS e WHERE e.account_id = account AND of_scope IN ('', 'company=' || e.company);
    GET DIAGNOSTICS n_rows = ROW_COUNT;
    IF n_rows > 0 THEN
        RETURN NEXT;
    END IF;
END
$$;
COMMENT ON FUNCTION erase_decisions IS
    'Erases an account from campaigns and exclusions, if it is there; names the lists with it that left the house.';

GRANT SELECT ON campaigns, campaign_members, campaign_exposures, list_exports, list_members, campaign_targets,
    campaign_summary TO churn_reader, churn_writer;
GRANT SELECT ON own_campaign_targets TO PUBLIC;
REVOKE ALL ON FUNCTION
    decision_salt(text), lock_decisions(boolean), require_lists(text[], date), accounts_at_risk(text[], date),
    create_campaign(jsonb), stage_revenue(), select_members(text), close_campaign(text),
    exclude_accounts(text[], bigint[], text[], date[]), revoke_exclusions(text[], bigint[], text[]),
    record_exposures(jsonb), holdout_share(text), accounts_of_list(text, date), variant_list(text, date, integer),
    variant_left_out(text, date), record_export(text, text, date, bigint, jsonb, text, text[], text[]),
    erase_decisions(bigint, text)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    lock_decisions(boolean), require_lists(text[], date), create_campaign(jsonb), stage_revenue(), select_members(text),
    close_campaign(text), exclude_accounts(text[], bigint[], text[], date[]),
    revoke_exclusions(text[], bigint[], text[]), record_exposures(jsonb), variant_list(text, date, integer),
    variant_left_out(text, date), record_export(text, text, date, bigint, jsonb, text, text[], text[])
TO churn_writer;
GRANT EXECUTE ON FUNCTION
    lock_decisions(boolean), require_lists(text[], date), variant_list(text, date, integer), variant_left_out(text, date),
    record_export(text, text, date, bigint, jsonb, text, text[], text[])
TO churn_reader;

-- Evaluation leaves out whom campaigns offered something.

COMMENT ON COLUMN evaluated_batches.n_matured IS
    'Accounts at risk whose label has matured; the figures are of these. After a campaign, the number of equally '
    'weighted ones that tell as much as those whom it offered nothing.';
COMMENT ON COLUMN evaluated_batches.n_churned IS 'Those that churned, of n_matured.';
