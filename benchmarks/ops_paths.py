"""What `ops.py` times: each operator's inputs, and the paths that compute it."""

OPS = ("short_conv", "long_conv", "wkv", "sliding_window", "block_sparse", "attention")
ATTENTIONS = OPS[3:]
TAPS = 4  # of the short convolution
HEAD = 64  # channels of a head of the attentions
WINDOW = 128  # of the sliding window; attention sees every position before
PATTERN = {"block": 64, "window": 3, "random": 3, "first": 2, "seed": 0}  # as published at T = 4096 (arXiv:2007.14062)


def inputs(op, size, dtype, device):
    """Returns the tensors of one call by name, those that want gradients only."""
    import torch

    B, T, D = size
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=getattr(torch, dtype))

    if op == "wkv":
        decay, bonus = torch.rand(D, device=device) + 0.01, torch.randn(D, device=device)
        made = {"k": draw(B, T, D), "v": draw(B, T, D), "decay": decay, "bonus": bonus}
    elif op in ATTENTIONS:
        made = {name: draw(B, T, D) for name in "qkv"}
    else:
        taps = draw(D, TAPS) if op == "short_conv" else draw(D, T) * T**-0.5
        made = {"x": draw(B, T, D), "taps": taps, "bias": draw(D), "gate": draw(B, T, D)}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def operators(path):
    """Returns the operators of a path by name, each from the tensors of `inputs` to y."""
    if path in ("kernel", "torch"):
        return own_operators("_kernel" if path == "kernel" else "")
    others = {
        "sdpa": sdpa_operators,
        "fla": fla_operators,
        "causal-conv1d": causal_conv1d_operators,
        "xformers": xformers_operators,
    }
    return others[path]()


def own_operators(suffix):
    from importlib import import_module

    def operator(name):
        return getattr(import_module(f"harness_zoo.ops.{name}{suffix}"), name)

    return {
        "short_conv": lambda **given: operator("short_conv")(**given, activation="silu"),
        "long_conv": lambda **given: operator("long_conv")(**given),
        "wkv": lambda **given: operator("wkv")(**given)[0],
        "sliding_window": lambda **given: operator("sliding_window")(*heads_first(given), window=WINDOW),
        "block_sparse": with_table(operator("block_sparse")),
    }


def block_rows(T):
    """Returns the blocks of keys of each block of queries."""
    from harness_zoo.bigbird.pattern import BlockPattern

    return BlockPattern(**PATTERN).rows(T)


def with_table(block_sparse):
    """Returns the operator with the table of each length, made in the calls before the timed ones."""
    import torch

    tables = {}

    def run(**given):
        _, T, _ = given["q"].shape
        if T not in tables:
            rows = block_rows(T)
            K = max(map(len, rows))
            filled = [row + [-1] * (K - len(row)) for row in rows]
            tables[T] = torch.tensor(filled, device=given["q"].device)
        return block_sparse(*heads_first(given), table=tables[T], block=PATTERN["block"])

    return run


def heads(given):
    """Returns q, k and v [B, T, H, hd] of [B, T, D], as views."""
    return [x.unflatten(2, (-1, HEAD)) for x in given.values()]


def heads_first(given):
    """Returns q, k and v [B, H, T, hd], as the layer gives them to its operator."""
    return [x.transpose(1, 2) for x in heads(given)]


def sdpa_operators():
    """Returns torch's own operator: with a dense mask of the window, and on its causal path."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    masks = {}  # the last one, made in the calls before the timed ones

    def sliding_window(**given):
        _, T, _ = given["q"].shape
        if T not in masks:
            t = torch.arange(T, device=given["q"].device)
            back = t[:, None] - t
            masks.clear()
            masks[T] = (back >= 0) & (back < WINDOW)
        return scaled_dot_product_attention(*heads_first(given), attn_mask=masks[T])

    def attention(**given):
        return scaled_dot_product_attention(*heads_first(given), is_causal=True)

    return {"sliding_window": sliding_window, "attention": attention}


def fla_operators():
    from fla.modules.convolution import causal_conv1d
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    def short_conv(x, taps, bias, gate):
        y = causal_conv1d(x, taps.flip(1), bias, activation="silu")
        return gate * (y[0] if isinstance(y, tuple) else y)

    def wkv(k, v, decay, bonus):
        B, _, D = k.shape
        state = k.new_zeros(B, 3, 1, D)
        state[:, 2] = -1e38
        return fused_recurrent_rwkv4(-decay.to(k.dtype), bonus.to(k.dtype), k, v, state)[0]

    return {"short_conv": short_conv, "wkv": wkv}


def causal_conv1d_operators():
    from causal_conv1d import causal_conv1d_fn

    def short_conv(x, taps, bias, gate):
        return gate * causal_conv1d_fn(x.mT, taps.flip(1), bias, activation="silu").mT

    return {"short_conv": short_conv}


def xformers_operators():
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import (
        LowerTriangularFromBottomRightLocalAttentionMask,
        LowerTriangularMask,
    )

    def sliding_window(**given):
        mask = LowerTriangularFromBottomRightLocalAttentionMask(WINDOW)
        return memory_efficient_attention(*heads(given), attn_bias=mask)

    def attention(**given):
        return memory_efficient_attention(*heads(given), attn_bias=LowerTriangularMask())

    return {"sliding_window": sliding_window, "attention": attention}
