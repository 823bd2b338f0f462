"""Small models of flax, whose trees with adapters other libraries wrote."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Block(nn.Module):
    """Keys and values of one layer, heads that are contracted."""

    @nn.compact
    def __call__(self, x, _):
        q = nn.DenseGeneral((2, 4), name="q_proj")(x)
        kv = nn.DenseGeneral((2, 2, 4), name="kv_proj")(x)
        mixed = q * kv[..., 0, :, :] + kv[..., 1, :, :]
        out = nn.DenseGeneral(8, axis=(-2, -1), name="o_proj")(mixed)
        return x + jnp.tanh(out), None


class Linen(nn.Module):
    """A convolution, a block of its own and a scanned stack of two."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3,), name="conv")(x)
        x, _ = Block(name="attn")(x, None)
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        return stack(name="layers")(x, None)[0]


class Einsum(nnx.Module):
    """As tunix writes its einsums: the weight is called w."""

    def __init__(self, equation, shape, rngs):
        self.equation = equation
        self.w = nnx.Param(jax.random.normal(rngs.params(), shape) * 0.3)

    def __call__(self, x):
        return jnp.einsum(self.equation, x, self.w[...])


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.q_einsum = Einsum("BTD,NDH->BTNH", (2, 8, 4), rngs)
        self.kv_einsum = Einsum("BSD,CKDH->CBSKH", (2, 2, 8, 4), rngs)
        self.attn_vec_einsum = Einsum("BTNH,NHD->BTD", (2, 4, 8), rngs)

    def __call__(self, x):
        k, v = self.kv_einsum(x)
        return self.attn_vec_einsum(self.q_einsum(x) * k + v)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.attn = Attention(rngs)
        self.mlp = nnx.Dict(
            up_proj=nnx.Linear(8, 12, use_bias=False, rngs=rngs),
            down_proj=nnx.Linear(12, 8, use_bias=False, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attn(x)
        return x + self.mlp["down_proj"](jax.nn.silu(self.mlp["up_proj"](x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(rngs), Layer(rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Gemma(nn.Module):
    """The feed-forward block of gemma, with one einsum for gate and up projection.

    Attributes:
      adapted: puts an adapter around a layer.
    """

    adapted: Callable[[nn.Module], nn.Module] = lambda layer: layer

    @nn.compact
    def __call__(self, x):
        shape, equation = (2, 12, 8), "...f,nhf->...nh"
        gate = self.adapted(nn.Einsum(shape, equation, False, name="gating_einsum"))(x)
        hidden = jax.nn.gelu(gate[..., 0, :]) * gate[..., 1, :]
        return self.adapted(nn.Dense(8, name="linear"))(hidden)
