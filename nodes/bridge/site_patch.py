"""What stands in the UNet's table of patches during a call, also where the UNet is compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from ...nested_core.sites import AttentionSite
from .site_call import CALL_KEY, Patch


def site_patches(sites: Iterable[AttentionSite]) -> dict[tuple[Any, ...], Patch]:
    """The entries of these sites; all have the same function, which finds the call's plan."""
    patch = _site_patch(_is_compiler_loaded())
    return {(*site,): patch for site in sites}


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    # The same function everywhere, which asks where it is: TorchCompileModel lets layers of the same
    # shape share one trace, and with it the function that was found when the first was traced.
    block, number = options["block"]
    site = AttentionSite(block, number, options["block_index"])
    return options[CALL_KEY].attend(site, query, key, value, options)


@cache
def _site_patch(compiling: bool) -> Patch:
    # A traced plan would be repeated in calls that have another one. The decorator imports the
    # compiler, which takes seconds, so it waits until something else has.
    return cast("Patch", torch.compiler.disable(_attend)) if compiling else _attend


def _is_compiler_loaded() -> bool:
    return "torch._dynamo" in sys.modules


@contextmanager
def traced_apart() -> Iterator[None]:
    """Keeps the traces of a bound and a plain model apart, which are compiled from the same code.

    TorchCompileModel has the compiler ignore what is in the options, where all our differences are.
    This harmless setting of PyTorch is one that every trace does check.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(before != _is_compiler_loaded())
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
