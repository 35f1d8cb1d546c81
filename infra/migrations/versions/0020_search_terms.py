"""PostgreSQL finds listings by words and by what they are in one index, and knows which words there are."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_TERMS = (
    "words || array_to_tsvector("
    "ARRAY['=n=' || namespace, '=b=' || base_name, '=m=' || method, '=k=' || task, '=l=' || licence]"
    " || string_to_array('=t=' || replace(tags, E'\\n', E'\\n=t='), E'\\n'))"
)
_KNOWN = (
    'CREATE TABLE listing_words_known (word varchar COLLATE "C" PRIMARY KEY)',
    "INSERT INTO listing_words_known SELECT DISTINCT unnest(tsvector_to_array(words)) FROM listings",
    # A vector's words are always in the same order, so that writers of the same words wait for each other and never in a circle.
    "CREATE FUNCTION know_listing_words() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " INSERT INTO listing_words_known SELECT unnest(tsvector_to_array(NEW.words)) ON CONFLICT DO NOTHING;"
    " RETURN NULL; END $$",
    "CREATE TRIGGER listings_worded AFTER INSERT OR UPDATE OF words ON listings FOR EACH ROW EXECUTE FUNCTION know_listing_words()",
)
_FORGOTTEN = (
    "DROP TRIGGER listings_worded ON listings",
    "DROP FUNCTION know_listing_words",
    "DROP TABLE listing_words_known",
)


def upgrade() -> None:
    """Make the index anew, and keep the words of the listings that are there; SQLite's full-text index stays as it is."""
    if op.get_bind().dialect.name == "sqlite":
        return
    op.execute("DROP INDEX ix_listings_words")
    op.execute(f"CREATE INDEX ix_listings_words ON listings USING gin (({_TERMS}))")
    for statement in _KNOWN:
        op.execute(statement)
    # Nothing else makes PostgreSQL count the terms before a tenth of the listings have changed.
    op.execute("ANALYZE listings, listing_words_known")


def downgrade() -> None:
    """Index words alone again."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for statement in _FORGOTTEN:
        op.execute(statement)
    op.execute("DROP INDEX ix_listings_words")
    op.create_index("ix_listings_words", "listings", ["words"], postgresql_using="gin")
