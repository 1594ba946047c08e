"""Multi-item scoring as a mask: several items behind one prefix, scored in one request without seeing each other."""
import torch

from ._attention import bits_where


def _unsigned(x, device):
    """uint16 and uint32 of the caller as i64: torch computes with signed ones only."""
    x, width = x.reshape(-1), x.element_size()  # of one request it may be a scalar
    if width == 2:
        return x.view(torch.int16).to(device).long() & 0xFFFF
    return (x.view(torch.int32) if width == 4 else x).to(device).long()


class ItemMask:
    """prefix_len [B]; token_pos_in_items: rows of row_len, the place of each token behind the prefix within its item, 0
    for a delimiter. Prefix rows are causal; a token at place t sees the prefix and the t keys that end at itself."""

    def __init__(self, device, prefix_len, token_pos_in_items, row_len):
        self.prefix = _unsigned(prefix_len, device)
        self.places = _unsigned(token_pos_in_items, device)
        self.row_len = row_len

    def pack(self, batch, num_bytes):
        qo_lens, kv_lens = batch.qo_lens(), batch.kv_lens()
        prefix, places, row_len = self.prefix, self.places, self.row_len

        def visible(request, element):
            keys = kv_lens[request].clamp(min=1)
            row, key = element // keys, element % keys
            position = row + (kv_lens - qo_lens)[request]
            behind = position - prefix[request]
            place = places[(request * row_len + behind).clamp(0, places.numel() - 1)]
            in_item = (key < prefix[request]) | ((key <= position) & (key > position - place))
            return torch.where(behind < 0, key <= position, in_item)

        return bits_where(qo_lens * kv_lens, num_bytes, visible)
