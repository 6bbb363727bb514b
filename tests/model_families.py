"""Tiny random models of the families that transformers has, with the kinds of layers of released
configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

VOCABULARY = 211
WINDOW = 40
"""Of layers with a sliding window; shorter than the checks' rows."""
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 2048}
GROUPED = {**WIDE, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 2048}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MAMBA2 = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
GATED = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "topk_group": 1,
}
ROUTED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def _make(name: str, *parts: dict[str, Any], **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        keys: dict[str, Any] = dict(IDS)
        for part in (*parts, more):
            keys |= part
        return getattr(hf, f"{name}Config")(**keys)

    return make


FAMILIES: dict[str, Callable[[], Any]] = {
    "afmoe": _make("Afmoe", HEADED, ROUTED, MIXED, sliding_window=WINDOW),
    "apertus": _make("Apertus", GROUPED),
    "arcee": _make("Arcee", GROUPED),
    "bamba": _make("Bamba", GROUPED, MAMBA2, attn_layer_indices=[1]),
    "biogpt": _make("BioGpt", WIDE),
    "bitnet": _make("BitNet", GROUPED),
    "bloom": _make("Bloom", hidden_size=32, n_layer=3, n_head=4),
    "codegen": _make("CodeGen", OLD, rotary_dim=4),
    "cohere": _make("Cohere", GROUPED, logit_scale=0.0625),
    "cohere2": _make("Cohere2", GROUPED, MIXED, sliding_window=WINDOW, logit_scale=0.25),
    "ctrl": _make("CTRL", OLD, dff=48),
    "cwm": _make("Cwm", HEADED, MIXED, sliding_window=WINDOW),
    "dbrx": _make(
        "Dbrx",
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=2048,
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    ),
    "deepseek_v2": _make(
        "DeepseekV2",
        WIDE,
        LATENT,
        GATED,
        head_dim=8,
        n_group=1,
    ),
    "deepseek_v3": _make(
        "DeepseekV3",
        WIDE,
        LATENT,
        GATED,
        n_group=2,
    ),
    "deepseek_v32": _make(
        "DeepseekV32",
        WIDE,
        LATENT,
        GATED,
        n_group=1,
        index_topk=16,
        # Few heads would score many keys 0, and which of equals is chosen depends on the padding.
        index_n_heads=16,
        index_head_dim=8,
    ),
    "diffllama": _make("DiffLlama", GROUPED),
    "doge": _make("Doge", GROUPED),
    "dots1": _make("Dots1", HEADED, GATED, n_group=1),
    "ernie4_5": _make("Ernie4_5", HEADED),
    "ernie4_5_moe": _make(
        "Ernie4_5_Moe",
        GROUPED,
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=16,
        moe_num_shared_experts=1,
    ),
    "exaone4": _make("Exaone4", GROUPED, MIXED, sliding_window=WINDOW),
    "exaone_moe": _make("ExaoneMoe", HEADED, ROUTED, MIXED, sliding_window=WINDOW),
    "falcon": _make("Falcon", SIZES, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": _make("Falcon", SIZES, alibi=True, new_decoder_architecture=False),
    "falcon_h1": _make("FalconH1", GROUPED, MAMBA2, mamba_d_ssm=64),
    "falcon_mamba": _make(
        "FalconMamba", hidden_size=32, num_hidden_layers=3, state_size=8, intermediate_size=64
    ),
    "flex_olmo": _make("FlexOlmo", GROUPED, num_experts=4, num_experts_per_tok=2),
    "gemma": _make("Gemma", HEADED),
    "gemma2": _make(
        "Gemma2",
        HEADED,
        MIXED,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=20.0,
    ),
    "gemma3_text": _make(
        "Gemma3Text", HEADED, MIXED, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
    "gemma3n_text": _make(
        "Gemma3nText",
        HEADED,
        MIXED,
        sliding_window=WINDOW,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0, 0.0],
    ),
    "gemma4_text": _make(
        "Gemma4Text",
        HEADED,
        MIXED,
        sliding_window=WINDOW,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        global_head_dim=8,
    ),
    "glm": _make("Glm", HEADED),
    "glm4": _make("Glm4", HEADED),
    "glm4_moe": _make(
        "Glm4Moe",
        HEADED,
        GATED,
        n_group=1,
    ),
    "gpt2": _make("GPT2", OLD),
    "gpt_bigcode": _make("GPTBigCode", OLD),
    "gpt_neo": _make(
        "GPTNeo",
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        max_position_embeddings=2048,
        window_size=256,
    ),
    "gpt_neox": _make("GPTNeoX", WIDE),
    "gpt_oss": _make("GptOss", HEADED, EXPERTS, MIXED, sliding_window=WINDOW),
    "gptj": _make("GPTJ", OLD, rotary_dim=4),
    "granite": _make("Granite", GROUPED, logits_scaling=8.0, residual_multiplier=0.5),
    "granitemoe": _make("GraniteMoe", GROUPED, EXPERTS, logits_scaling=8.0),
    "granitemoehybrid": _make(
        "GraniteMoeHybrid",
        GROUPED,
        MAMBA2,
        EXPERTS,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        shared_intermediate_size=16,
        logits_scaling=8.0,
    ),
    "granitemoeshared": _make("GraniteMoeShared", GROUPED, EXPERTS, shared_intermediate_size=16),
    "helium": _make("Helium", HEADED),
    "hunyuan_v1_dense": _make("HunYuanDenseV1", HEADED),
    "hunyuan_v1_moe": _make("HunYuanMoEV1", HEADED, num_experts=4, moe_topk=[2, 2, 2]),
    "jamba": _make(
        "Jamba",
        GROUPED,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "jetmoe": _make("JetMoe", GROUPED, EXPERTS, kv_channels=8),
    "lfm2": _make("Lfm2", GROUPED, layer_types=["conv", "conv", "full_attention"]),
    "lfm2_moe": _make(
        "Lfm2Moe",
        GROUPED,
        ROUTED,
        num_dense_layers=1,
        layer_types=["conv", "conv", "full_attention"],
    ),
    "llama": _make("Llama", GROUPED),
    "llama4_text": _make(
        "Llama4Text",
        HEADED,
        EXPERTS,
        num_hidden_layers=4,
        intermediate_size_mlp=32,
        attention_chunk_size=WINDOW,
    ),
    "mamba": _make("Mamba", hidden_size=32, num_hidden_layers=3, state_size=8),
    "mamba2": _make(
        "Mamba2",
        hidden_size=32,
        num_hidden_layers=3,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
    ),
    "minimax": _make(
        "MiniMax",
        HEADED,
        EXPERTS,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        block_size=16,
    ),
    "minimax_m2": _make("MiniMaxM2", HEADED, EXPERTS),
    "ministral": _make("Ministral", HEADED, MIXED, sliding_window=WINDOW),
    "ministral3": _make("Ministral3", HEADED),
    "mistral": _make("Mistral", HEADED, sliding_window=WINDOW),
    "mixtral": _make("Mixtral", HEADED, EXPERTS, sliding_window=None),
    "modernbert_decoder": _make(
        "ModernBertDecoder",
        WIDE,
        local_attention=WINDOW,
        global_attn_every_n_layers=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "mpt": _make("Mpt", d_model=32, n_layers=3, n_heads=4, max_seq_len=2048),
    "nanochat": _make("NanoChat", GROUPED),
    "nemotron": _make("Nemotron", GROUPED),
    "nemotron_h": _make(
        "NemotronH",
        HEADED,
        layers_block_type=["mamba", "attention", "moe", "mamba"],
        num_hidden_layers=4,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        use_mamba_kernels=False,
    ),
    "olmo": _make("Olmo", GROUPED),
    "olmo2": _make("Olmo2", GROUPED),
    "olmo3": _make("Olmo3", GROUPED, MIXED, sliding_window=WINDOW),
    "olmo_hybrid": _make("OlmoHybrid", HEADED, DELTA),
    "olmoe": _make("Olmoe", GROUPED, num_experts=4, num_experts_per_tok=2),
    "openai_gpt": _make("OpenAIGPT", OLD),
    "opt": _make("OPT", SIZES, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=2048),
    "persimmon": _make("Persimmon", WIDE),
    "phi": _make("Phi", GROUPED),
    "phi3": _make("Phi3", GROUPED, sliding_window=WINDOW),
    "phimoe": _make("Phimoe", GROUPED, EXPERTS, sliding_window=WINDOW),
    "qwen2": _make("Qwen2", GROUPED),
    "qwen2_moe": _make("Qwen2Moe", GROUPED, ROUTED),
    "qwen2_window": _make(
        "Qwen2", GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": _make("Qwen3", HEADED),
    "qwen3_5_moe_text": _make("Qwen3_5MoeText", HEADED, ROUTED, DELTA),
    "qwen3_5_text": _make("Qwen3_5Text", HEADED, DELTA),
    "qwen3_moe": _make("Qwen3Moe", HEADED, ROUTED),
    "qwen3_next": _make("Qwen3Next", HEADED, ROUTED, DELTA),
    "recurrent_gemma": _make(
        "RecurrentGemma",
        GROUPED,
        head_dim=8,
        lru_width=32,
        attention_window_size=WINDOW,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "rwkv": _make(
        "Rwkv", hidden_size=32, attention_hidden_size=32, num_hidden_layers=3, context_length=2048
    ),
    "seed_oss": _make("SeedOss", HEADED),
    "smollm3": _make("SmolLM3", GROUPED, num_hidden_layers=4),
    "stablelm": _make("StableLm", GROUPED),
    "starcoder2": _make("Starcoder2", GROUPED, sliding_window=WINDOW),
    "vaultgemma": _make(
        "VaultGemma", HEADED, MIXED, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
    "xglm": _make(
        "XGLM",
        d_model=32,
        num_layers=3,
        attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=2048,
    ),
    "youtu": _make("Youtu", WIDE, LATENT, num_key_value_heads=4),
    "zamba2": _make(
        "Zamba2",
        GROUPED,
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_ngroups=1,
        n_mamba_heads=8,
        num_mem_blocks=1,
        chunk_size=16,
        use_mamba_kernels=False,
    ),
}


def family_model(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    spread: float = 4.0,
    attention: str | None = None,
) -> PreTrainedModel:
    """A random model whose next-token distributions are far from uniform, dropout off."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                module.weight.mul_(spread)
        head: Any = model.get_output_embeddings()
        if head.weight is not model.get_input_embeddings().weight:
            ids = torch.randint(3, VOCABULARY, (2, 30))
            head.weight.mul_(2.5 / model.eval()(input_ids=ids, use_cache=False).logits.std())
    return model.to(dtype).eval()
