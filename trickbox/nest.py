"""Nests of tensors: inputs may be a tensor, or tuples, lists and mappings of them, however deep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """Rebuild *nest* with *function* of each of its tensors; everything else stays.

    >>> import torch
    >>> map_tensors(lambda t: t.shape[0], {"a": torch.zeros(3), "b": [torch.zeros(4), "text"]})
    {'a': 3, 'b': [4, 'text']}
    """
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        return {key: map_tensors(function, value) for key, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(function, value) for value in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return nest


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors of *nest*, in order."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        for value in nest.values():
            yield from tensors(value)
    elif isinstance(nest, (tuple, list)):
        for value in nest:
            yield from tensors(value)


def shapes(nest: Any) -> str:
    """The shapes of *nest*, for messages: ``(32, 1, 128)``."""
    found = [str(tuple(tensor.shape)) for tensor in tensors(nest)]
    return ", ".join(found) if found else f"a {type(nest).__name__}"


def call(model: nn.Module, inputs: Any) -> Any:
    """Run *model*: a tuple (or the list that collation makes of it) as ``model(*inputs)``, a mapping as
    ``model(**inputs)``, anything else as ``model(inputs)``."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
