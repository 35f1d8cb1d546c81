"""The key that signs versions: where it is kept, and how another takes over from it."""

from __future__ import annotations

import secrets
from typing import get_args

from cli.home import KEY_BYTES, Home
from hub.signing import Signer, Succession
from infra.settings import Settings
from wegeft.contracts.errors import InvalidSetting, NotFound
from wegeft.contracts.signing_keys import Algorithm, SigningKey, key_id


def find_signer(settings: Settings, home: Home) -> Signer:
    """Return what signs versions: with the key that is set, or else with the home's, which is made the first time.

    Raises :class:`InvalidSetting` for a file that holds no key.
    """
    if settings.signing_key is not None:
        return Signer(key=SigningKey(bytes.fromhex(settings.signing_key.get_secret_value())))
    signer = _read(home)
    if signer is None:
        signer = Signer(key=SigningKey(secrets.token_bytes(KEY_BYTES)))
        home.write_signing_key(_text(signer))
    return signer


def rotate_key(settings: Settings, home: Home) -> Signer:
    """Put a new key in the place of the home's, endorsed by it, and return it; it is used from the service's next start on.

    The old secret is gone with it; its public half stays with the service. Raises :class:`InvalidSetting` where the key is not kept in the
    home, and :class:`NotFound` where there is none yet.
    """
    if settings.signing_key is not None:
        raise InvalidSetting("the key is set, not kept in the home folder", path="WEGEFT_SIGNING_KEY", hint="set another one there")
    old = _read(home)
    if old is None:
        raise NotFound("there is no key yet", path=str(home.signing_key_file), hint="the service's first start makes one")
    new = SigningKey(secrets.token_bytes(KEY_BYTES))
    endorsements = {algorithm: old.key.endorse(new.pem(algorithm)) for algorithm in get_args(Algorithm)}
    signer = Signer(key=new, succession=Succession(predecessor=key_id(old.key.pem("ed25519")), endorsements=endorsements))
    home.write_signing_key(_text(signer))
    return signer


def _text(signer: Signer) -> str:
    told = signer.succession
    lines = [signer.key.seed.hex()]
    if told is not None:
        lines += [told.predecessor, *(told.endorsements[algorithm] for algorithm in get_args(Algorithm))]
    return "\n".join(lines) + "\n"


def _read(home: Home) -> Signer | None:
    try:
        lines = home.signing_key_file.read_text(encoding="ascii").split()
        seed = bytes.fromhex(lines[0]) if lines else b""
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidSetting("the key file cannot be read", path=str(home.signing_key_file), hint="64 hex digits") from error
    if len(seed) != KEY_BYTES or len(lines) not in (1, 4):
        raise InvalidSetting("the key file holds no key", path=str(home.signing_key_file), hint="64 hex digits")
    if len(lines) == 1:
        return Signer(key=SigningKey(seed))
    endorsements = dict(zip(get_args(Algorithm), lines[2:], strict=True))
    return Signer(key=SigningKey(seed), succession=Succession(predecessor=lines[1], endorsements=endorsements))
