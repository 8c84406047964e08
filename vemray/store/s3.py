"""S3 clients: how they find endpoint and credentials, how long they try again, one per process and bucket.

Credentials and endpoint come from where every AWS tool looks (AWS_* variables, profile files, instance roles). Without any the bucket
is read anonymously. Clients never cross a fork: the caches are keyed by the process."""

from __future__ import annotations

import functools
import hashlib
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from vemray.errors import StorageError
from vemray.store.address import bucket_key, shown

# One request up to this size, because only single puts are atomic with conditions and cheap in requests; parts of it beyond.
PART = 64 << 20


def _retries(most: int, seconds: float, pause: float) -> dict[str, Any]:
    # each pause is drawn between the first and `base` times the last, so that with a base of 2 pauses shrink: 60 tries were over in 16 to 36 s
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=pause), "base": 4}
    return {"max_retries": most, "retry_timeout": timedelta(seconds=seconds), "backoff": backoff}


# A killed server was back after 14 to 24 s, so the usual 2.5 to 8 s of retries are not enough.
PATIENT = _retries(2000, 180, 3)  # the seconds decide
BRIEF = _retries(2, 4, 1)


def environment() -> tuple:
    """What a client depends on: this process and the AWS settings, as a digest (no secret is kept)."""
    text = "\0".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return os.getpid(), hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def settings_of(env: tuple) -> dict[str, Any]:
    """Endpoint, region and credentials as botocore finds them (variables, profile, instance role); None means anonymous."""
    import botocore.session
    from botocore.configprovider import ConfiguredEndpointProvider

    session = botocore.session.Session()
    try:
        endpoint = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
        credentials = None if anonymous else session.get_credentials()
    except Exception as e:  # ProfileNotFound, ConfigParseError, ...: their text names files and profiles only
        raise StorageError(f"The AWS configuration cannot be used ({type(e).__name__}). Check AWS_PROFILE and the files in ~/.aws.") from None
    return {"endpoint": endpoint, "region": region, "credentials": credentials}


def view() -> str:
    """Whom this process talks to when it says s3://, in words and without secrets. Processes of one run must agree."""
    settings = settings_of(environment())
    return f"{shown(settings['endpoint'] or '') or 'Amazon S3'}, {'with' if settings['credentials'] else 'without'} credentials"


@functools.lru_cache(maxsize=64)
def store_of(env: tuple, bucket: str, prefix: str, patient: bool):
    from obstore.store import S3Store

    settings = settings_of(env)
    config: dict[str, Any] = {"region": settings["region"]}
    client: dict[str, Any] = {"timeout": timedelta(seconds=120 if patient else 5), "connect_timeout": timedelta(seconds=5)}
    if settings["endpoint"]:
        config["endpoint"] = settings["endpoint"]
        client["allow_http"] = settings["endpoint"].startswith("http://")
    provider = None
    if settings["credentials"] is None:
        config["skip_signature"] = True
    else:

        def provider(credentials=settings["credentials"]):  # botocore renews what expires
            frozen = credentials.get_frozen_credentials()
            expires = datetime.now(UTC) + timedelta(minutes=10) if hasattr(credentials, "refresh_needed") else None
            return {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token, "expires_at": expires}

    return S3Store(
        bucket, prefix=prefix or None, config=config, client_options=client, retry_config=PATIENT if patient else BRIEF, credential_provider=provider
    )


def client(url: str, patient: bool = True):
    """(obstore S3Store of the bucket, key) for an s3:// URL, from this process's cache."""
    bucket, key = bucket_key(url)
    return store_of(environment(), bucket, "", patient), key


@functools.lru_cache(maxsize=1)
def zarr_store_class():
    import obstore
    from zarr.storage import ObjectStore

    class SinglePutStore(ObjectStore):
        """zarr's ObjectStore, which would send values over 5 MiB in parts."""

        async def set(self, key, value):
            self._check_writable()
            data = value.as_buffer_like()
            await obstore.put_async(self.store, key, data, use_multipart=memoryview(data).nbytes > PART, chunk_size=PART)

    return SinglePutStore


@functools.lru_cache(maxsize=8)
def file_system(env: tuple):
    import s3fs

    settings = settings_of(env)
    retries = {"retries": {"mode": "standard", "max_attempts": 20}}
    return s3fs.S3FileSystem(
        anon=settings["credentials"] is None,
        endpoint_url=settings["endpoint"],
        config_kwargs=retries,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
