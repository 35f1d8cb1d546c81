"""The federations' tables: who may take part, and what each round asked, got and became."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, ForeignKeyConstraint, Index, Integer, String, Table, Text, UniqueConstraint

from infra.database import METADATA, UtcTime

INVITATIONS = Table(
    "federation_invitations",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("is_approval", Boolean, nullable=False),  # whether the site that takes it up is approved by that
    Column("invited_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=True),
)

SITES = Table(
    "federation_sites",
    METADATA,
    Column("pseudonym", String(128), primary_key=True),
    Column("job_id", String(30), ForeignKey("jobs.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("public_key", String(72), nullable=False, unique=True),  # of one federation alone: a request signed for it is none of another
    Column("state", String(16), nullable=False),
    Column("max_examples", BigInteger, nullable=False),
    Column("enrolled_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    UniqueConstraint("job_id", "name"),
)

NONCES = Table(
    "federation_nonces",
    METADATA,
    Column("pseudonym", String(128), ForeignKey("federation_sites.pseudonym"), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("seen_at", UtcTime, nullable=False),
    Index(None, "seen_at"),
)

ROUNDS = Table(
    "federation_rounds",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("since", UtcTime, nullable=False),  # when it began to wait, for sites to ask or for their updates
    Column("start_digest", String(71), nullable=False),
    Column("members", Text, nullable=True),  # JSON list of the update digests that it closed with; settled once
    Column("closed_at", UtcTime, nullable=True),
    Column("result_digest", String(71), nullable=True),
    Column("record", Text, nullable=True),  # JSON of the RoundRecord
    Column("consumed", Integer, nullable=True),  # in buffered mode, the last position that it or a round before it has used up
)

OFFERS = Table(
    "federation_offers",
    METADATA,
    Column("job_id", String(30), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("pseudonym", String(128), ForeignKey("federation_sites.pseudonym"), primary_key=True),
    Column("offer", Text, nullable=False),  # JSON as it was sent
    ForeignKeyConstraint(
        ["job_id", "number", "attempt"], ["federation_rounds.job_id", "federation_rounds.number", "federation_rounds.attempt"]
    ),
)

ARRIVALS = Table(
    "federation_arrivals",
    METADATA,
    Column("job_id", String(30), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("pseudonym", String(128), primary_key=True),
    Column("digest", String(71), primary_key=True),  # of the message's canonical bytes: the same message again is the same row
    Column("received_at", UtcTime, nullable=False),
    Column("reason", String(32), nullable=True),
    Column("message", Text, nullable=False),  # JSON of the SignedUpdate or the Decline
    Column("problems", Text, nullable=False),  # JSON list
    Column("position", Integer, nullable=True),  # in buffered mode, of an accepted update: its place in the order of all
    Index(None, "job_id", "position", unique=True),
    ForeignKeyConstraint(
        ["job_id", "number", "attempt", "pseudonym"],
        [
            "federation_offers.job_id",
            "federation_offers.number",
            "federation_offers.attempt",
            "federation_offers.pseudonym",
        ],
    ),
)

BLOBS = Table(
    "federation_blobs",
    METADATA,
    Column("job_id", String(30), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("pseudonym", String(128), primary_key=True),
    Column("digest", String(71), primary_key=True),  # of bytes that the site had: to know a digest is not to have what it names
    ForeignKeyConstraint(
        ["job_id", "number", "attempt", "pseudonym"],
        [
            "federation_offers.job_id",
            "federation_offers.number",
            "federation_offers.attempt",
            "federation_offers.pseudonym",
        ],
    ),
)

ROLLBACKS = Table(
    "federation_rollbacks",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("to_round", Integer, nullable=False),  # 0: where the federation began
    Column("start_digest", String(71), nullable=False),
    Column("opened_round", Integer, nullable=True),  # None where the job had ended
    Column("cancelled", Text, nullable=True),  # JSON: number and try of the round that was in flight
    Column("aliases", Text, nullable=False),  # JSON list of the aliases that were moved
    Column("person", String(200), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("rolled_back_at", UtcTime, nullable=False),
)

FORMER_KEYS = Table(
    "federation_former_keys",
    METADATA,
    Column("public_key", String(72), primary_key=True),  # never a site's key again
    Column("pseudonym", String(128), ForeignKey("federation_sites.pseudonym"), nullable=False),
    Column("replaced_at", UtcTime, nullable=False),
    Index(None, "pseudonym"),
)

ROTATIONS = Table(
    "federation_rotations",
    METADATA,
    Column("pseudonym", String(128), ForeignKey("federation_sites.pseudonym"), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("person", String(200), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=True),
)

TROUBLES = Table(
    "federation_troubles",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("place", String(64), nullable=False),  # which step of which round
    Column("code", String(64), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("next_at", UtcTime, nullable=False),
)
