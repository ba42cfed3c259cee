"""Audio tokens, image tokens and tool calls: meters that take no room where an event has none of them."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_METERS = (
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "tool_calls",
)
_ROLLUPS = {
    "usage_quarters": "quarter_start",
    **dict.fromkeys(("pool_minutes", "pool_customer_minutes", "limit_minutes"), "minute"),
}


def _number(place: int) -> str:
    number = f"('x' || encode(substring(further_meters FROM {4 * place + 1} FOR 4), 'hex'))::bit(32)::integer"
    return f"CASE WHEN further_meters = '' THEN 0 ELSE {number} END"


def upgrade() -> None:
    numbers = ", ".join(_number(place) for place in range(len(_METERS)))
    # neither writes nor reads what is there: the default is kept beside the table, and NOT VALID looks at new
    # rows alone, of which the old ones, all empty, need no proof
    op.execute("ALTER TABLE usage_events ADD COLUMN further_meters bytea NOT NULL DEFAULT ''")
    op.execute(
        f"""
        ALTER TABLE usage_events ADD CONSTRAINT usage_events_further_meters_check CHECK (
            further_meters = '' OR octet_length(further_meters) = {4 * len(_METERS)} AND
            CASE WHEN source_id > 0 THEN least({numbers}) >= 0 ELSE greatest({numbers}) <= 0 END) NOT VALID"""
    )
    for rollup, start in _ROLLUPS.items():
        op.execute(f"ALTER TABLE {rollup} {', '.join(f'ADD COLUMN {meter} bigint' for meter in _METERS)}")
        op.execute(
            f"CREATE INDEX {rollup}_further_idx ON {rollup} ({start}) "
            f"WHERE num_nonnulls({', '.join(_METERS)}) > 0"
        )


def downgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM usage_events WHERE further_meters <> '') THEN "
        "RAISE EXCEPTION 'the ledger holds events with audio, images or tool calls; "
        "before this version they would be lost'; END IF; END $$"
    )
    for rollup in _ROLLUPS:
        op.execute(f"DROP INDEX {rollup}_further_idx")
        op.execute(f"ALTER TABLE {rollup} {', '.join(f'DROP COLUMN {meter}' for meter in _METERS)}")
    op.execute("ALTER TABLE usage_events DROP CONSTRAINT usage_events_further_meters_check")
    op.execute("ALTER TABLE usage_events DROP COLUMN further_meters")
