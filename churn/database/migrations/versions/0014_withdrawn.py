"""A challenger that ends without being promoted."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BEFORE = ("observed", "challenged", "promoted", "rolled_back", "shared")


def upgrade() -> None:
    """Accept the action."""
    _accept(*_BEFORE, "withdrawn")


def downgrade() -> None:
    """Accept it no longer; the changes that were withdrawals count as observed."""
    op.execute("UPDATE model_events SET action = 'observed' WHERE action = 'withdrawn'")
    _accept(*_BEFORE)


def _accept(*actions: str) -> None:
    op.drop_constraint("model_events_action_check", "model_events")
    op.create_check_constraint("model_events_action_check", "model_events", f"action IN {actions}")
