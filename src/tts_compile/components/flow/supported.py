"""The flows that the engine was written for: it reads the modules' weights and computes what they compute."""

from __future__ import annotations

from typing import Any

from ..support import classes, several_dtypes, unknown_class

CLASSES = classes(
    chatterbox=(
        "BasicTransformerBlock CausalBlock1D CausalConditionalCFM CausalConv1d CausalMaskedDiffWithXvec "
        "CausalResnetBlock1D ConditionalDecoder ConformerEncoderLayer EspnetRelPositionalEncoding "
        "FeedForward LinearNoSubsampling PositionwiseFeedForward PreLookaheadLayer "
        "RelPositionMultiHeadedAttention SinusoidalPosEmb TimestepEmbedding Transpose Upsample1D "
        "UpsampleConformerEncoder"
    ),
    diffusers="Attention GELU LoRACompatibleLinear",
    torch="Conv1d Dropout Embedding LayerNorm Linear Mish ModuleList Sequential SiLU",
)


def unsupported(flow: Any) -> str | None:
    """Returns why the engine would not compute what this flow computes, or None."""
    reason = unknown_class(map(type, flow.modules()), CLASSES) or several_dtypes(flow)
    return reason or _encoder(flow.encoder) or _estimator(flow.decoder.estimator)


def _encoder(encoder: Any) -> str | None:
    layers = [*encoder.encoders, *encoder.up_encoders]
    if any(layer.conv_module or layer.feed_forward_macaron or not layer.normalize_before for layer in layers):
        return "its encoder has layers of another kind"
    if len({norm.eps for layer in layers for norm in (layer.norm_mha, layer.norm_ff)}) != 1:
        return "the norms of its encoder's layers differ"
    if encoder.static_chunk_size or encoder.use_dynamic_chunk or encoder.global_cmvn:
        return "its encoder attends in chunks or normalises its input"
    return None


def _estimator(estimator: Any) -> str | None:
    if len(estimator.down_blocks) != 1 or not estimator.causal or estimator.static_chunk_size:
        return "its estimator has several resolutions, looks ahead or attends in chunks"
    stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
    blocks = [block for stage in stages for block in stage[1]]
    for block in blocks:
        attention, mlp = block.attn1, block.ff.net
        if attention.to_q.bias is not None or block.attn2 is not None or block.norm1.weight is None:
            return "its estimator's attention is of another kind"
        if type(attention.processor).__name__ not in ("AttnProcessor", "AttnProcessor2_0"):
            return f"its estimator attends by {type(attention.processor).__name__}"
        if len(mlp) != 3 or mlp[0].approximate != "none":
            return "its estimator's MLP is of another kind"
    kinds = {
        (block.attn1.heads, block.ff.net[0].proj.out_features, block.norm1.eps, block.norm3.eps) for block in blocks
    }
    convolved = [estimator.final_block, *(block for stage in stages for block in (stage[0].block1, stage[0].block2))]
    if len(kinds) != 1 or len({block.block[2].eps for block in convolved}) != 1:
        return "its estimator's blocks differ in their sizes"
    return None
