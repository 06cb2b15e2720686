"""Fetch published weights through timm, and fail at once, with what to do, where there is no network."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants
from torch import nn

from calib.errors import IntvitError

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def reachable() -> bool:
    """Whether the hub's name resolves; taken as yes behind a proxy, which resolves names itself."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline_unless(online: bool) -> Iterator[None]:
    """Without a network, let the hub library use its cache only: it would otherwise retry for half a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _repository(tag: str) -> str:
    """Where timm looks for the weights: several tags share one, some are not timm's, and a tag may be left out."""
    config = timm.get_pretrained_cfg(tag, allow_unregistered=True)
    return (config and config.hf_hub_id) or f"timm/{tag}"


def fetch(tag: str, name: str) -> nn.Module:
    """The network of a timm tag with its published weights, from the hub or from the hub library's cache.

    Raises:
        IntvitError: they cannot be had; the message says how to fetch them on a machine with a network.
    """
    online = reachable()
    try:
        with _offline_unless(online):
            module: nn.Module = timm.create_model(tag, pretrained=True)
            return module
    except Exception as error:
        repository = _repository(tag)
        detail = str(error).splitlines()[0][:200] if str(error) else "no detail"
        raise IntvitError(
            f"the weights of {name} could not be fetched",
            where=f"{constants.ENDPOINT}/{repository}",
            why=f"{type(error).__name__}: {detail}" if online else "there is no network, and they are not in the cache",
            next=(
                f"on a machine with a network: pip install huggingface_hub && hf download {repository} "
                "model.safetensors --local-dir . ; copy model.safetensors here and add --checkpoint model.safetensors "
                "(or --checkpoint random to try the pipeline without trained weights)"
            ),
        ) from error
