"""H3 as the paper writes it (arXiv:2212.14052, section 3 and algorithm 1), one position at a time, as state spaces."""

import torch
from torch import Tensor

from harness_zoo.h3.layer import H3


class ReferenceH3(H3):
    """Both SSMs as x_t = A x_{t-1} + B u_t, y_t = C x_t + s u_t, with the shift matrix and the diagonal written out."""

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        (B, T, D), hd, N = u.shape, self.head_dim, self.shift.shape[1]
        shift_matrix = torch.diag(u.new_ones(N - 1), -1)  # e_1 -> e_2 -> ... -> e_N
        first = torch.eye(N, dtype=u.dtype, device=u.device)[0]
        keys = u.new_zeros(B, D, N)
        ssm = self.initial_state(B, u.device, u.dtype)[1]
        A, input_matrix, C = self.diagonal.discrete()
        outputs = []
        for t in range(T):
            q_t, k_t, v_t = self.qkv(u[:, t]).chunk(3, dim=1)
            keys = keys @ shift_matrix.T + k_t.unsqueeze(2) * first
            k_t = (self.shift * keys).sum(2) + self.shift_skip * k_t
            q, k, v = (part.view(B, hd, -1) for part in (q_t, k_t, v_t))  # [B, hd, H]
            kv = torch.einsum("bih,bjh->bijh", k, v)
            ssm = A * ssm + input_matrix * kv.unsqueeze(-1)
            y = 2 * (C * ssm).sum(-1).real.to(u.dtype) + self.diagonal.skip * kv
            outputs.append(self.out_proj(torch.einsum("bih,bijh->bjh", q, y).reshape(B, D)))
        return torch.stack(outputs, dim=1)
