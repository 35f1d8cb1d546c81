"""PostgreSQL notes the words that listings have had, so that those that no listing has any more are forgotten."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_KNOW = (
    "CREATE OR REPLACE FUNCTION know_listing_words() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    "{lock} INSERT INTO listing_words_known SELECT unnest(tsvector_to_array(NEW.words)) ON CONFLICT DO NOTHING;"
    " RETURN NULL; END $$"
)
# Until the transaction ends, shared: so whoever forgets words, alone, misses none that a listing has as soon as it is committed.
_LOCK = " PERFORM pg_advisory_xact_lock_shared(7318349394477057);"
# At the end of the transaction: a new version's listing is another row, and has most of the words of the one before.
_LEAVE = (
    "CREATE FUNCTION leave_listing_words() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE gone tsvector := OLD.words; BEGIN"
    "{lock} SELECT ts_delete(gone, tsvector_to_array(words)) INTO gone FROM listings WHERE adapter_id = OLD.adapter_id;"
    " INSERT INTO listing_words_left SELECT unnest(tsvector_to_array(coalesce(gone, OLD.words))) ON CONFLICT DO NOTHING;"
    " RETURN NULL; END $$"
)
_LEFT = (
    'CREATE TABLE listing_words_left (word varchar COLLATE "C" PRIMARY KEY)',
    "INSERT INTO listing_words_left SELECT word FROM listing_words_known EXCEPT SELECT unnest(tsvector_to_array(words)) FROM listings",
    _LEAVE.format(lock=_LOCK),
    "CREATE CONSTRAINT TRIGGER listings_unworded AFTER UPDATE OF words OR DELETE ON listings DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION leave_listing_words()",
)


def upgrade() -> None:
    """Begin with the words that no listing has now; SQLite knows no words apart."""
    if op.get_bind().dialect.name == "sqlite":
        return
    op.execute(_KNOW.format(lock=_LOCK))
    for statement in _LEFT:
        op.execute(statement)


def downgrade() -> None:
    """Keep all words again."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for statement in (
        "DROP TRIGGER listings_unworded ON listings",
        "DROP FUNCTION leave_listing_words",
        "DROP TABLE listing_words_left",
        _KNOW.format(lock=""),
    ):
        op.execute(statement)
