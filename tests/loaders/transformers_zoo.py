"""Tiny random models of transformers: class -> configuration, some forty model types."""

from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
EXPERTS: dict[str, Any] = {
    **TEXT,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "head_dim": 8,
}
DEEPSEEK: dict[str, Any] = {
    **EXPERTS,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "first_k_dense_replace": 1,
}
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CLIP_TEXT: dict[str, Any] = {**TEXT, "projection_dim": 8}
CLIP_VISION: dict[str, Any] = {**IMAGE, "projection_dim": 8}

PLAIN: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": TEXT,
    "MistralForCausalLM": TEXT,
    "Qwen2ForCausalLM": TEXT,
    "Qwen3ForCausalLM": {**TEXT, "head_dim": 8, "tie_word_embeddings": True},
    "Gemma2ForCausalLM": {**TEXT, "head_dim": 8},
    "Gemma3ForCausalLM": {**TEXT, "head_dim": 8},
    "Phi3ForCausalLM": TEXT,
    "PhiForCausalLM": TEXT,
    "StableLmForCausalLM": TEXT,
    "OlmoForCausalLM": TEXT,
    "Olmo2ForCausalLM": TEXT,
    "CohereForCausalLM": TEXT,
    "GraniteForCausalLM": TEXT,
    "GPTNeoXForCausalLM": TEXT,
    "GPT2LMHeadModel": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2,
                        "n_positions": 32},
    "OPTForCausalLM": {**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "BloomForCausalLM": {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "MambaForCausalLM": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2,
                         "state_size": 4},
    "BertForMaskedLM": TEXT,
    "RobertaForMaskedLM": {**TEXT, "pad_token_id": 1},
    "ElectraForPreTraining": {**TEXT, "embedding_size": 16},
    "AlbertForMaskedLM": {**TEXT, "embedding_size": 8},
    "DistilBertForSequenceClassification": {
        "vocab_size": 64, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2,
        "max_position_embeddings": 32,
    },
    "DebertaV2ForTokenClassification": TEXT,
    "T5ForConditionalGeneration": {
        "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": ENCODER_DECODER,
    "MarianMTModel": ENCODER_DECODER,
    "WhisperForConditionalGeneration": {
        **ENCODER_DECODER, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8,
        "suppress_tokens": None, "begin_suppress_tokens": None,
    },
    "ViTForImageClassification": IMAGE,
    "DeiTForImageClassification": IMAGE,
    "Dinov2ForImageClassification": IMAGE,
    "SiglipVisionModel": IMAGE,
    "SwinForImageClassification": {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 2,
    },
    "ResNetForImageClassification": {
        "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic",
    },
    "SegformerForSemanticSegmentation": {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16],
        "num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 8,
    },
    "CLIPModel": {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 8},
    "Wav2Vec2ForCTC": {
        **TEXT, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2),
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip
"""Types whose files have the module's own keys, or are only renamed."""

CONVERTED: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": EXPERTS,
    "Qwen2MoeForCausalLM": EXPERTS,
    "Qwen3MoeForCausalLM": EXPERTS,
    "OlmoeForCausalLM": EXPERTS,
    "PhimoeForCausalLM": EXPERTS,
    "GraniteMoeForCausalLM": EXPERTS,
    "DeepseekV2ForCausalLM": {**DEEPSEEK, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": DEEPSEEK,
    "MiniMaxForCausalLM": EXPERTS,
    "JambaForCausalLM": {
        **EXPERTS, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
}  # fmt: skip
"""Types whose experts are stacked on loading."""


def build_model(class_name: str, fields: dict[str, Any]):
    """Return the model under a fixed seed."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(**fields)).eval()
