"""Keys and values of a model of transformers, offered as `model.Cache` describes.

A row's tokens lie one after the other from its beginning, whatever the other rows hold. So a row that was cut back, or
is shorter than others, needs no mask of its own: the model reads on with all rows that are equally long together.
"""

import torch
from transformers.cache_utils import Cache as LayerCaches
from transformers.cache_utils import DynamicLayer

from model import Cache


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, in tensors that have room for more: a new token copies only itself.

    It keeps what lies outside a sliding window, too, since it may be cut back; the model's own mask hides that.
    """

    def __init__(self, room):
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states, value_states, *args, **kwargs):
        """Store keys and values of T new tokens, (B, nh, T, hs) each; return those of all S tokens, (B, nh, S, hs)."""
        start, self.length = self.length, self.length + key_states.size(2)
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = key_states[:, :, :0], value_states[:, :, :0], True
        self.reserve(self.length)
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = key_states, value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self):
        """How many tokens it holds."""
        return self.length

    def reserve(self, length):
        """Make room for at least `length` tokens, and for twice as many as now if it must grow."""
        if length > self.keys.size(2):
            length = max(length, self.room, 2 * self.keys.size(2))
            self.keys, self.values = _lengthen(self.keys, length), _lengthen(self.values, length)

    def take(self, rows):
        """Return a new layer made of these rows."""
        taken = GrowingLayer(self.room)
        taken.keys, taken.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        taken.length, taken.is_initialized = self.length, True
        return taken

    def put(self, rows, layer):
        """Copy all tokens of a layer made of these rows back into it."""
        self.reserve(layer.length)
        self.keys[rows, :, : layer.length] = layer.keys[:, :, : layer.length]
        self.values[rows, :, : layer.length] = layer.values[:, :, : layer.length]


def _lengthen(x, length):
    """Return a copy of x, (B, nh, S, hs), that has room for `length` tokens."""
    longer = x.new_zeros(*x.shape[:2], length, x.size(3))
    longer[:, :, : x.size(2)] = x
    return longer


class HubCache(Cache):
    """The keys and values of all tokens processed so far; its methods are described in `model.Cache`."""

    def __init__(self, batch_size, room):
        """room: for how many tokens a row the first tensors are made."""
        self.room = room
        self.past = LayerCaches(layer_class_to_replicate=lambda: GrowingLayer(room))  # what transformers' models take
        self._set_lengths(torch.zeros(batch_size, dtype=torch.int64))

    @property
    def nbytes(self):
        """Its size in bytes."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.past.layers)

    def tensors(self):
        """Return all keys and values, (B, nh, room, hs) each."""
        return [tensor for layer in self.past.layers for tensor in (layer.keys, layer.values)]

    def reserve(self, T):
        """Make room for T more tokens in each row, and count them."""
        for layer in self.past.layers:
            layer.reserve(self.end + T)
        self.advance(T)

    def advance(self, T):
        """Note that the model has read T more tokens in each row."""
        self._set_lengths(self.lengths + T)

    def take(self, rows):
        """Return a new cache made of these rows, (n,) indices; a row may be taken several times."""
        taken = HubCache(len(rows), self.room)
        taken.past.layers = [layer.take(rows.to(layer.keys.device)) for layer in self.past.layers]
        taken._set_lengths(self.lengths[rows.cpu()])
        return taken

    def put(self, rows, part):
        """Copy back a cache that was made of these rows and has read on."""
        for layer, other in zip(self.past.layers, part.past.layers, strict=True):
            layer.put(rows.to(layer.keys.device), other)

    def equal_rows(self):
        """Yield the indices of rows that hold equally many tokens, with their number."""
        for length in self.lengths.unique().tolist():
            yield (self.lengths == length).nonzero()[:, 0], length

    def _set_lengths(self, lengths):
        super()._set_lengths(lengths)
        for layer in self.past.layers:
            layer.length = self.end
