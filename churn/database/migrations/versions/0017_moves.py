"""Moves of aliases: decided before they begin, completed by whoever comes next, in the order of the database."""

from alembic import op

revision = "0017"
down_revision = "0012"
branch_labels = None
depends_on = None

# The writer may neither choose a row's time nor end an event except once.
_UPGRADE = """
ALTER TABLE model_events
    ADD COLUMN from_champion integer,
    ADD COLUMN from_previous integer,
    ADD COLUMN from_challenger integer,
    ADD COLUMN state text NOT NULL DEFAULT 'done' CHECK (state IN ('pending', 'done', 'overtaken')),
    ADD COLUMN decision text,
    ALTER COLUMN occurred_at SET DEFAULT clock_timestamp();
COMMENT ON COLUMN model_events.occurred_at IS 'When it was recorded, by the database''s clock; event_id is the order.';
COMMENT ON COLUMN model_events.from_champion IS 'The version of the alias before; likewise previous and challenger.';
COMMENT ON COLUMN model_events.state IS
    'pending until all aliases are moved; overtaken if somebody else moved one before that.';
COMMENT ON COLUMN model_events.decision IS
    'What the event decides once and for all, such as a Dagster run with its retries; null for a command.';
DROP INDEX model_events_variant;
CREATE INDEX model_events_variant ON model_events (variant, event_id);
CREATE UNIQUE INDEX model_events_pending ON model_events (variant) WHERE state = 'pending';
CREATE UNIQUE INDEX model_events_decision ON model_events (variant, decision) WHERE decision IS NOT NULL;

CREATE FUNCTION end_move(of_variant text, ended_as text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.model_events SET state = ended_as WHERE variant = of_variant AND state = 'pending'
$$;
COMMENT ON FUNCTION end_move IS 'Ends the pending move of a variant''s aliases as done or overtaken.';
REVOKE ALL ON FUNCTION end_move(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION end_move(text, text) TO churn_writer;
REVOKE INSERT ON model_events FROM churn_writer;
GRANT INSERT (
    variant, registered_model, action, champion_version, previous_version, challenger_version, ab_share, is_forced,
    reason, actor, evidence, from_champion, from_previous, from_challenger, state, decision
) ON model_events TO churn_writer;
"""
_CHAMPION_ON = """
CREATE OR REPLACE FUNCTION champion_on(of_variant text, day date) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT champion_version FROM public.model_events
    WHERE variant = of_variant AND occurred_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
    ORDER BY {order} LIMIT 1
$$;
"""
_DOWNGRADE = """
DROP FUNCTION end_move(text, text);
DROP INDEX model_events_variant;
CREATE INDEX model_events_variant ON model_events (variant, occurred_at);
ALTER TABLE model_events
    DROP COLUMN from_champion, DROP COLUMN from_previous, DROP COLUMN from_challenger, DROP COLUMN state,
    DROP COLUMN decision, ALTER COLUMN occurred_at DROP DEFAULT;
GRANT INSERT ON model_events TO churn_writer;
"""


def upgrade() -> None:
    """Add the state of each move; those recorded before are done."""
    op.get_bind().exec_driver_sql(_UPGRADE)
    op.get_bind().exec_driver_sql(_CHAMPION_ON.format(order="event_id DESC"))


def downgrade() -> None:
    """Drop the states; a pending move is recorded as if it were complete."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
    op.get_bind().exec_driver_sql(_CHAMPION_ON.format(order="occurred_at DESC, event_id DESC"))
