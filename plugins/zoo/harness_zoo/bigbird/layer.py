"""BigBird's attention (arXiv:2007.14062) made causal: the core's attention layer over blocks of keys."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness import AttentionOptions, InputError, SelfAttention
from harness_zoo.bigbird.pattern import BlockPattern
from harness_zoo.inputs import check_input
from harness_zoo.ops.block_sparse import block_sparse


class BlockSparse(nn.Module):
    """Attends to the blocks of a pattern; the table of them moves with the layer."""

    table: Tensor

    def __init__(self, pattern: BlockPattern, max_len: int, operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.block, self.max_len, self.sparse = pattern.block, max_len, operator
        rows = pattern.rows(max_len)
        K = max(map(len, rows))
        self.register_buffer("table", torch.tensor([row + [-1] * (K - len(row)) for row in rows]), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns [B, H, T, hd] from q of the last T of S positions and k, v [B, H, S, hd]; T is S or 1."""
        if self.max_len < k.shape[2]:
            raise InputError(
                f"bigbird got T = {k.shape[2]} tokens but its blocks were drawn for max_len = {self.max_len}; "
                "shorten the sequence, or build the layer with a larger max_len"
            )
        return self.sparse(q, k, v, self.table, self.block)


class BigBird(SelfAttention):
    """Keeps all keys and values while decoding: a later block may draw any of them."""

    def __init__(
        self,
        d_model: int,
        max_len: int,
        options: AttentionOptions,
        pattern: BlockPattern,
        operator: Callable[..., Tensor] = block_sparse,
    ) -> None:
        super().__init__(d_model, max_len, options, BlockSparse(pattern, max_len, operator))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        check_input("bigbird", x, self.heads.out_proj.in_features)
        return super().forward(x)
