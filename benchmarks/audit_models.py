"""The modules that audit_check.py builds: public libraries at small sizes, without weights."""

from collections.abc import Callable
from typing import Any

from torch import nn

Entry = tuple[str, dict[str, Any]]
"""What `-m` takes, and the constructor's arguments."""


def words(text: str) -> list[str]:
    return text.split()


def timm_model(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def transformers_model(name: str, **settings: Any) -> nn.Module:
    """Build `nameModel` with what its configuration has of `TINY`, and `settings`."""
    import transformers

    config = getattr(transformers, f"{name}Config")
    known = config()
    fitting = {k: v for k, v in TINY.items() if hasattr(known, k)}
    model: nn.Module = getattr(transformers, f"{name}Model")(config(**{**fitting, **settings}))
    return model


TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "n_embd": 32,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "d_kv": 8,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
}


def found(target: str) -> Callable[..., Any]:
    import importlib

    module, _, path = target.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    made: Callable[..., Any] = value
    return made


def each(package: str, entries: dict[str, dict[str, Any]]) -> list[Entry]:
    """Name the classes of one package by `package:Name`; a dot leads into a part of it."""
    return [
        (f"{package}{name if ':' in name else f':{name}'}", given)
        for name, given in entries.items()
    ]


def own(factory: str, *entries: dict[str, Any]) -> list[Entry]:
    return [(f"audit_models:{factory}", given) for given in entries]


BACKBONE = {"weights": None, "weights_backbone": None}
MODELS: dict[str, list[Entry]] = {
    "torchvision": [
        *(
            (f"torchvision.models:{name}", {"weights": None})
            for name in words(
                """
alexnet vgg11_bn resnet18 squeezenet1_0 densenet121 shufflenet_v2_x0_5 mobilenet_v2
mobilenet_v3_small mnasnet0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf vit_b_16
swin_t swin_v2_t maxvit_t convnext_tiny
            """
            )
        ),
        ("torchvision.models:inception_v3", {"weights": None, "init_weights": False}),
        ("torchvision.models:googlenet", {"weights": None, "init_weights": False}),
        *(
            (f"torchvision.models.segmentation:{name}", BACKBONE)
            for name in (
                "fcn_resnet50",
                "deeplabv3_mobilenet_v3_large",
                "lraspp_mobilenet_v3_large",
            )
        ),
        *(
            (f"torchvision.models.detection:{name}", BACKBONE)
            for name in words(
                """
fasterrcnn_mobilenet_v3_large_320_fpn retinanet_resnet50_fpn ssd300_vgg16
ssdlite320_mobilenet_v3_large fcos_resnet50_fpn maskrcnn_resnet50_fpn
keypointrcnn_resnet50_fpn
            """
            )
        ),
        *(
            (f"torchvision.models.video:{n}", {})
            for n in ("r3d_18", "mvit_v2_s", "swin3d_t", "s3d")
        ),
        ("torchvision.models.optical_flow:raft_small", {}),
        ("torchvision.models.quantization:mobilenet_v2", {}),
    ],
    "timm": own(
        "timm_model",
        *(
            {"name": name}
            for name in words(
                """
beit_base_patch16_224 beitv2_base_patch16_224 cait_xxs24_224 coat_lite_tiny
coatnet_nano_rw_224 convit_tiny convmixer_768_32 convnextv2_atto crossvit_9_240 davit_tiny
deit_tiny_patch16_224 deit3_small_patch16_224 edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny ghostnet_100 hgnet_tiny hiera_tiny_224 inception_next_tiny
levit_128s maxvit_nano_rw_256 mixer_s32_224 mobileone_s0 mobilevit_xxs mobilevitv2_050
mvitv2_tiny nest_tiny nextvit_small nf_resnet50 pit_ti_224 poolformer_s12 pvt_v2_b0
repghostnet_050 repvgg_a0 repvit_m0_9 resnest14d rexnet_100 selecsls42 sequencer2d_s
starnet_s1 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small visformer_tiny
vit_tiny_patch16_224 vit_relpos_small_patch16_224 vit_relpos_base_patch16_clsgap_224
vit_small_patch14_reg4_dinov2 vit_small_patch16_dinov3 vit_srelpos_small_patch16_224
vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224 halonet26t lambda_resnet26t botnet26t_256
bat_resnext26ts eca_halonext26ts samvit_base_patch16 naflexvit_base_patch16_gap
tiny_vit_5m_224 hrnet_w18_small dm_nfnet_f0 test_vit tf_efficientnet_b0 mambaout_femto
shvit_s1 dla34 res2net50_26w_4s
            """
            )
        ),
    ),
    "transformers": [
        *own(
            "transformers_model",
            *(
                {"name": name}
                for name in words(
                    """
GPT2 GPTNeoX GPTNeo Bloom Falcon CTRL Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Phi Phi3
Mixtral Olmo2 Cohere StableLm Granite Persimmon Starcoder2 MPT Bert Roberta DistilBert
Electra DebertaV2 Deberta Albert MPNet ModernBert SqueezeBert RoFormer Nystromformer
ConvBert BigBird XLNet Funnel T5 MT5 Bart MBart Pegasus Marian Whisper Blenderbot M2M100
ProphetNet LED ViT DeiT Beit Swin Swinv2 ConvNext Dinov2 Segformer Levit PoolFormer Mamba
Mamba2 RecurrentGemma Jamba Rwkv Wav2Vec2 Hubert WavLM Vits Encodec Dac SpeechT5 UnivNet Esm
Perceiver Reformer Longformer Canine PatchTST TimeSeriesTransformer Informer Autoformer
CLIPText CLIPVision SiglipVision Sam Owlv2Vision DPT XGLM OpenAIGPT ImageGPT OPT Qwen2Moe
DeepseekV3 GraniteMoe Gemma3Text Llama4Text XLM Flaubert Xmod Speech2Text Data2VecAudio
Timesformer VideoMAE Mask2Former Audio Spectrogram Clvp Mimi Moshi Zamba2 Bamba GptOss Dbrx
            """
                )
            ),
        ),
    ],
    "diffusers": each(
        "diffusers",
        {
            "UNet2DModel": {
                "block_out_channels": (32, 64),
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            },
            "UNet2DConditionModel": {
                "block_out_channels": (32, 64),
                "cross_attention_dim": 32,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            },
            "AutoencoderKL": {"block_out_channels": (32,)},
            "VQModel": {"block_out_channels": (32,)},
            "AutoencoderTiny": {},
            "AutoencoderKLTemporalDecoder": {"block_out_channels": (32,)},
            "DiTTransformer2DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
            },
            "PixArtTransformer2DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
            },
            "SD3Transformer2DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "joint_attention_dim": 32,
                "caption_projection_dim": 32,
                "pooled_projection_dim": 32,
            },
            "FluxTransformer2DModel": {
                "num_layers": 1,
                "num_single_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 128,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
            },
            "CogVideoXTransformer3DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "text_embed_dim": 32,
            },
            "LTXVideoTransformer3DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
                "caption_channels": 32,
            },
            "MochiTransformer3DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "pooled_projection_dim": 16,
                "text_embed_dim": 16,
                "time_embed_dim": 4,
            },
            "WanTransformer3DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "text_dim": 32,
                "ffn_dim": 32,
            },
            "AutoencoderKLWan": {"base_dim": 8, "num_res_blocks": 1},
            "SanaTransformer2DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 16,
                "cross_attention_dim": 32,
                "caption_channels": 32,
            },
            "QwenImageTransformer2DModel": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 128,
                "joint_attention_dim": 32,
            },
            "HunyuanVideoTransformer3DModel": {
                "num_layers": 1,
                "num_single_layers": 1,
                "num_refiner_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 128,
                "text_embed_dim": 32,
                "pooled_projection_dim": 32,
            },
            "ConsistencyDecoderVAE": {},
            "MotionAdapter": {"block_out_channels": (32, 64), "motion_num_attention_heads": 2},
            "AutoencoderOobleck": {
                "encoder_hidden_size": 8,
                "channel_multiples": [1, 2],
                "downsampling_ratios": [2, 2],
                "decoder_channels": 8,
                "decoder_input_channels": 4,
            },
            "PriorTransformer": {
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "embedding_dim": 32,
            },
        },
    ),
}

ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(
        words(
            """
dim hidden_size hidden_dim d_model embed_dim emb_dim in_features out_features in_channels
out_channels channels_in channels_out dim_in dim_out in_dim out_dim input_dim output_dim
embedding_dim n_embd hidden_channels num_channels planes inplanes chan chan_in chan_out
in_chans out_chans num_features feature_dim features nhid ninp d n_channels hidden
hidden_features token_dim dim_token input_channels output_channels query_dim dim_model
node_dim input_size output_size dim_hidden mlp_dim dim_inner ff_dim inner_dim dim_latent
latent_dim in_ch out_ch width codebook_dim dim_codebook time_emb_dim cond_dim dim_cond
dim_context embed_size num_hiddens inp_dim nf c ch dim_time inp oup c_in c_out num_inputs
            """
        ),
        32,
    ),
    **dict.fromkeys(
        words(
            """
channels image_channels n_dims ndim input_channel
            """
        ),
        3,
    ),
    **dict.fromkeys(
        words(
            """
heads num_heads n_heads head n_head nhead num_groups groups kv_heads num_experts n_experts
num_slots num_local_experts n_blocks num_blocks order
            """
        ),
        2,
    ),
    **dict.fromkeys(
        words(
            """
depth num_layers n_layers layers n_layer num_hidden_layers stride iters rank
            """
        ),
        1,
    ),
    **dict.fromkeys(
        words(
            """
dim_head head_dim d_head rot_dim rotary_dim
            """
        ),
        16,
    ),
    **dict.fromkeys(
        words(
            """
num_tokens vocab_size n_vocab ntoken codebook_size num_embeddings n_tokens num_codes
num_memories
            """
        ),
        64,
    ),
    **dict.fromkeys(
        words(
            """
max_seq_len seq_len max_len n_ctx block_size context_length max_position_embeddings
sequence_length num_frames num_patches length window_length seq_length context_size
            """
        ),
        16,
    ),
    **dict.fromkeys(
        words(
            """
image_size img_size fmap_size size resolution input_resolution feature_map_size
            """
        ),
        32,
    ),
    **dict.fromkeys(
        words(
            """
window_size bucket_size patch_size chunk_size num_buckets local_window_size segment_len
sinkhorn_window_size num_mem_kv num_latents num_queries block_len
            """
        ),
        8,
    ),
    **dict.fromkeys(
        words(
            """
num_classes n_classes classes num_outputs n_out num_labels
            """
        ),
        5,
    ),
    **dict.fromkeys(
        words(
            """
kernel_size kernel k window win_size
            """
        ),
        3,
    ),
    **dict.fromkeys(
        words(
            """
sample_rate sr sampling_rate
            """
        ),
        16000,
    ),
    **dict.fromkeys(
        words(
            """
n_fft fft_size filter_length
            """
        ),
        64,
    ),
    **dict.fromkeys(
        words(
            """
hop_length hop_size
            """
        ),
        16,
    ),
    **dict.fromkeys(
        words(
            """
win_length
            """
        ),
        64,
    ),
    **dict.fromkeys(
        words(
            """
n_mels num_mels n_mel_channels n_freqs n_filters
            """
        ),
        8,
    ),
    **dict.fromkeys(
        words(
            """
dropout drop p eps beta gamma alpha sigma momentum decay temperature lr
            """
        ),
        0.1,
    ),
    "dims": 2,
    "spatial_dims": 2,
    "theta": 10000,
    "kernel_sizes": (3,),
    "causal": True,
    "bias": True,
}
