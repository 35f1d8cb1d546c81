"""PostgreSQL keeps of each listing by which terms it might be found, small enough to walk through in the order of a list."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_TERMS = (
    "ROW.words || array_to_tsvector("
    "ARRAY['=n=' || ROW.namespace, '=b=' || ROW.base_name, '=m=' || ROW.method, '=k=' || ROW.task, '=l=' || ROW.licence]"
    " || string_to_array('=t=' || replace(ROW.tags, E'\\n', E'\\n=t='), E'\\n'))"
)
_FILLED = "INSERT INTO listing_words_marks SELECT version_id, key, mark_terms(TERMS) FROM listings ORDER BY version_id"
_FOLLOWED = (
    "CREATE FUNCTION mark_listing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF TG_OP <> 'INSERT' THEN DELETE FROM listing_words_marks WHERE version_id = OLD.version_id; END IF;"
    " IF TG_OP <> 'DELETE' THEN INSERT INTO listing_words_marks VALUES (NEW.version_id, NEW.key, mark_terms(TERMS)); END IF;"
    " RETURN NULL; END $$"
)
_MADE = (
    # Whoever publishes waits until the trigger is there: else what is published while listings are marked would never be.
    "LOCK TABLE listings IN SHARE ROW EXCLUSIVE MODE",
    # Two of 512 bits for each term. The hash stays the same in all versions of PostgreSQL, for partitions depend on it.
    "CREATE FUNCTION mark_terms(terms tsvector) RETURNS bytea LANGUAGE plpgsql IMMUTABLE STRICT AS $$"
    " DECLARE marks bytea := decode(repeat('00', 64), 'hex'); term text; hash bigint;"
    " BEGIN FOREACH term IN ARRAY tsvector_to_array(terms) LOOP"
    " hash := hashtextextended(term, 0);"
    " marks := set_bit(set_bit(marks, hash & 511, 1), (hash >> 9) & 511, 1);"
    " END LOOP; RETURN marks; END $$",
    'CREATE TABLE listing_words_marks (version_id integer NOT NULL, key varchar(193) COLLATE "C" NOT NULL, marks bytea NOT NULL)',
    _FILLED.replace("TERMS", _TERMS.replace("ROW", "listings")),
    # A primary key, without which a replicated PostgreSQL refuses every change of a row.
    "ALTER TABLE listing_words_marks ADD CONSTRAINT pk_listing_words_marks PRIMARY KEY (version_id) INCLUDE (marks)",
    "CREATE UNIQUE INDEX listing_words_marks_key ON listing_words_marks (key) INCLUDE (version_id, marks)",
    _FOLLOWED.replace("TERMS", _TERMS.replace("ROW", "NEW")),
    "CREATE TRIGGER listings_marked AFTER INSERT OR DELETE OR"
    " UPDATE OF version_id, key, words, namespace, base_name, method, task, licence, tags"
    " ON listings FOR EACH ROW EXECUTE FUNCTION mark_listing()",
)
_UNMADE = (
    "DROP TRIGGER listings_marked ON listings",
    "DROP FUNCTION mark_listing",
    "DROP TABLE listing_words_marks",
    "DROP FUNCTION mark_terms",
)


def upgrade() -> None:
    """Mark the listings that are there; SQLite walks through its full-text index instead."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for statement in _MADE:
        op.execute(statement)
    op.execute("ANALYZE listing_words_marks")


def downgrade() -> None:
    """Forget the marks."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for statement in _UNMADE:
        op.execute(statement)
