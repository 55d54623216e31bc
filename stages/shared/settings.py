"""The base class of all settings, and the type of a path among them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from cache import storage
from cache.storage import AnyPath


class Settings(BaseModel):
    """Settings cannot be changed, and refuse a name that they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _path(value: Any) -> AnyPath:
    if not isinstance(value, (str, Path, storage.RemotePath)):
        raise ValueError("Input is not a path or a URL")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("a name that is not UTF-8: rename it, or give a link to it") from None
    return storage.path(value)


PathOrUrl = Annotated[AnyPath, PlainValidator(_path), PlainSerializer(str, when_used="json")]
