"""Attention, by the kernel that suits the platform, over one device or a mesh.

    auto    cuDNN on GPU, splash on TPU, XLA on CPU (and wherever the first two cannot compute what is asked)
    cudnn   NVIDIA's flash attention: bfloat16 or float16, heads of up to 128 channels
    splash  the Pallas flash attention for TPUs
    xla     plain matrix products, in pieces of the queries where the whole logits would be large

Over a mesh, batches are dealt out over its data and fsdp axes. Where the tokens of a video are spread over the sequence
axis, self-attention swaps them for heads by all-to-all (DeepSpeed-Ulysses, arXiv 2309.14509): each device then sees
every token of some heads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from wr1_jax.errors import UserError
from wr1_jax.parallel.mesh import batch_axes

Queries = Float[Array, "B N heads head_dim"]
Keys = Float[Array, "B M heads head_dim"]
KeyLengths = Int[Array, "B"] | None
Kernel = Callable[[Queries, Keys, Keys, KeyLengths], Queries]

_PLATFORMS = {"xla": ("cpu", "gpu", "tpu"), "cudnn": ("gpu",), "splash": ("tpu",)}
_XLA_LOGITS = 2**24  # logits a head that XLA may hold at once
_SPLASH_BLOCKS = (512, 384, 256, 128)  # tile sides, best first; all multiples of the last


@dataclasses.dataclass(frozen=True)
class Attention:
  """softmax(q k^T / sqrt(head_dim)) v with the kernel `implementation`, over the devices of `mesh`.

  Raises:
    UserError: the implementation is unknown, or cannot run on these devices; later, with this dtype or head size.
  """

  implementation: str = "auto"
  mesh: Mesh | None = None

  def __post_init__(self) -> None:
    if self.implementation not in ("auto", *_PLATFORMS):
      raise UserError(f"config.model.attention is {self.implementation!r}; it can be auto, {', '.join(_PLATFORMS)}.")
    if self.implementation != "auto" and self.platform not in _PLATFORMS[self.implementation]:
      raise UserError(
        f"config.model.attention is {self.implementation!r}, which runs on "
        f"{_PLATFORMS[self.implementation][0]} devices only, and these are {self.platform} devices; "
        "'auto' takes what suits them."
      )

  @property
  def platform(self) -> str:
    device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
    return device.platform

  def __call__(
    self, q: Queries, k: Keys, v: Keys, *, key_lengths: KeyLengths = None, shard_sequence: bool = False
  ) -> Queries:
    """Attends from every token of `q` to the first `key_lengths` (default: all) tokens of `k` and `v`.

    Args:
      shard_sequence: over a mesh, `k` and `v` are spread over the sequence axis as `q` always is (self-attention over a
        video); otherwise every device of that axis has them whole (cross-attention to a text). N must be a multiple of
        the axis.

    Returns:
      an array like `q`.
    """
    kernel = self.kernel(q.dtype, q.shape[-1])
    if self.mesh is None:
      return kernel(q, k, v, key_lengths)
    exchange = shard_sequence and self.mesh.shape["sequence"] > 1
    batch = batch_axes(self.mesh, q.shape[0])
    split, whole = P(batch, "sequence"), P(batch)
    keys = split if exchange else whole

    def on_one_device(q, k, v, key_lengths):
      if not exchange:
        return kernel(q, k, v, key_lengths)
      swap = functools.partial(jax.lax.all_to_all, axis_name="sequence", tiled=True)
      q, k, v = (swap(x, split_axis=2, concat_axis=1) for x in (q, k, v))
      return swap(kernel(q, k, v, key_lengths), split_axis=1, concat_axis=2)

    # Pallas kernels do not say over which axes their results vary, so that cannot be checked.
    sharded = jax.shard_map(
      on_one_device, mesh=self.mesh, in_specs=(split, keys, keys, whole), out_specs=split, check_vma=False
    )
    return sharded(q, k, v, key_lengths)

  def kernel(self, dtype: DTypeLike, head_dim: int) -> Kernel:
    """What computes attention on one device for arrays of `dtype`; a `UserError` where the one asked for cannot."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    cudnn_can = half and head_dim % 8 == 0 and head_dim <= 128
    if self.implementation == "cudnn" and not cudnn_can:
      raise UserError(
        "config.model.attention is 'cudnn', which computes in bfloat16 or float16 with head sizes that "
        f"are multiples of 8 up to 128, and this model has {jnp.dtype(dtype).name} and {head_dim}; "
        "'auto' takes XLA for it."
      )
    if self.implementation == "cudnn" or (self.implementation == "auto" and self.platform == "gpu" and cudnn_can):
      return _cudnn
    if self.implementation == "splash" or (self.implementation == "auto" and self.platform == "tpu"):
      return splash
    return xla


def xla(q: Queries, k: Keys, v: Keys, key_lengths: KeyLengths) -> Queries:
  """Attention by matrix products; at most about `_XLA_LOGITS` logits a head and batch entry exist at once."""
  attend = functools.partial(
    jax.nn.dot_product_attention, key=k, value=v, key_value_seq_lengths=key_lengths, implementation="xla"
  )
  tokens = q.shape[1]
  pieces = math.ceil(tokens * k.shape[1] / _XLA_LOGITS)
  if pieces == 1:
    return attend(q)
  q = _pad_tokens(q, _round_up(tokens, pieces))
  # Each piece is computed again in the backward pass, which otherwise would keep the logits of all.
  out = jax.lax.map(jax.checkpoint(attend), einops.rearrange(q, "b (piece n) h d -> piece b n h d", piece=pieces))
  return einops.rearrange(out, "piece b n h d -> b (piece n) h d")[:, :tokens]


def _cudnn(q: Queries, k: Keys, v: Keys, key_lengths: KeyLengths) -> Queries:
  tokens = q.shape[1]
  # Its backward pass takes even numbers of tokens only. Lengths, not a mask, which would become a bias: slower.
  q, k, v, key_lengths = _pad(q, k, v, key_lengths, multiple=2)
  out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=key_lengths, implementation="cudnn")
  return out[:, :tokens]


def splash(q: Queries, k: Keys, v: Keys, key_lengths: KeyLengths, *, interpret: bool = False) -> Queries:
  """Splash attention, with tokens padded to whole tiles; unused keys are in another segment than all queries.

  `interpret` runs the kernel without a TPU, slowly.
  """
  tokens = q.shape[1]
  q, k, v, key_lengths = _pad(q * q.shape[-1] ** -0.5, k, v, key_lengths, multiple=_SPLASH_BLOCKS[-1])
  (batch, n, heads, _), m = q.shape, k.shape[1]
  segments = None
  if key_lengths is not None:
    used = jnp.arange(m) < key_lengths[:, None]
    segments = splash_attention.SegmentIds(q=jnp.ones((batch, n), jnp.int32), kv=used.astype(jnp.int32))
  kernel = _splash_kernel(heads, n, m, interpret)
  out = jax.vmap(kernel)(*(einops.rearrange(x, "b n h d -> b h n d") for x in (q, k, v)), segments)
  return einops.rearrange(out, "b h n d -> b n h d")[:, :tokens]


def _splash_kernel(heads: int, n: int, m: int, interpret: bool) -> Callable:
  block_q, block_kv = (next(block for block in _SPLASH_BLOCKS if length % block == 0) for length in (n, m))
  sizes = splash_attention.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )
  mask = splash_attention.MultiHeadMask([splash_attention.FullMask((n, m))] * heads)
  return splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


def _pad(
  q: Queries, k: Keys, v: Keys, key_lengths: KeyLengths, multiple: int
) -> tuple[Queries, Keys, Keys, KeyLengths]:
  """Pads to multiples of tokens, and gives the lengths where keys were added."""
  batch, m = k.shape[:2]
  if key_lengths is None and m % multiple:
    key_lengths = jnp.full((batch,), m, jnp.int32)
  q, k, v = (_pad_tokens(x, _round_up(x.shape[1], multiple)) for x in (q, k, v))
  return q, k, v, key_lengths


def _pad_tokens(x: Float[Array, "B N heads head_dim"], length: int) -> Float[Array, "B length heads head_dim"]:
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple
