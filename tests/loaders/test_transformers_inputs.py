"""Inputs that a configuration gives are inputs that the model runs with."""

import pytest

import ckptool
from tests.loaders.transformers_zoo import CLIP_TEXT, CLIP_VISION, ENCODER_DECODER, IMAGE, TEXT

transformers = pytest.importorskip("transformers")

from ckptool.loaders.transformers_inputs import make_model_inputs  # noqa: E402

BERT = {**TEXT, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
AUDIO = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 4,
    "num_feat_extract_layers": 2,
}


def make_pair(pair_class, encoder, **decoder_options):
    decoder = transformers.BertConfig(
        **BERT, is_decoder=True, add_cross_attention=True, **decoder_options
    )
    config_class = getattr(transformers, f"{pair_class.removesuffix('Model')}Config")
    config = config_class.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return getattr(transformers, pair_class)(config)


def make_model(class_name, **fields):
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(**fields))


MODELS = {
    "Whisper": lambda: make_model(
        "WhisperForConditionalGeneration", **ENCODER_DECODER, num_mel_bins=8,
        max_source_positions=20, max_target_positions=16,
    ),
    "Speech2Text": lambda: make_model(
        "Speech2TextForConditionalGeneration", **ENCODER_DECODER, input_feat_per_channel=8,
        max_source_positions=40, max_target_positions=16,
    ),
    "T5": lambda: make_model(
        "T5ForConditionalGeneration", vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1,
        num_heads=2, decoder_start_token_id=0,
    ),
    "BART": lambda: make_model("BartForConditionalGeneration", **ENCODER_DECODER),
    "Wav2Vec2": lambda: make_model("Wav2Vec2ForCTC", **BERT, **AUDIO),
    "AST": lambda: make_model(
        "ASTForAudioClassification", **IMAGE, max_length=40, num_mel_bins=32
    ),
    "BLIP": lambda: make_model(
        "BlipForConditionalGeneration", vision_config=IMAGE, projection_dim=8,
        text_config={**TEXT, "encoder_hidden_size": 16, "sep_token_id": 2},
    ),
    "CLIP": lambda: make_model(
        "CLIPModel", text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=8
    ),
    "image to text": lambda: make_pair(
        "VisionEncoderDecoderModel", transformers.ViTConfig(**IMAGE)
    ),
    "text to text": lambda: make_pair("EncoderDecoderModel", transformers.BertConfig(**BERT)),
    "speech to text": lambda: make_pair(
        "SpeechEncoderDecoderModel", transformers.Wav2Vec2Config(**BERT, **AUDIO)
    ),
}  # fmt: skip


ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
SIGLIP = {"model_type": "siglip_vision_model", **IMAGE}
CLIP_AND_LLAMA = {
    "vision_config": {"model_type": "clip_vision_model", **CLIP_VISION},
    "text_config": {"model_type": "llama", **TEXT},
    "image_token_index": 63,
}
OPT = {"model_type": "opt", **TEXT, "ffn_dim": 16, "word_embed_proj_dim": 16}
QUERIES = {
    "vision_config": IMAGE, "qformer_config": {**TEXT, "encoder_hidden_size": 16},
    "text_config": OPT, "image_token_index": 63, "num_query_tokens": 3,
}  # fmt: skip
PINPOINTS = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
VISION_AND_TEXT = {
    "Llava": CLIP_AND_LLAMA,
    "VipLlava": {**CLIP_AND_LLAMA, "vision_feature_layers": [-1, -2]},
    "LlavaNext": {**CLIP_AND_LLAMA, **PINPOINTS},
    "PaliGemma": {
        "vision_config": {**SIGLIP, "projection_dim": 16}, "image_token_index": 63,
        "text_config": {"model_type": "gemma", "head_dim": 8, **TEXT}, "projection_dim": 16,
    },
    "Gemma3": {
        "vision_config": {**SIGLIP, "image_size": 32}, "text_config": {"head_dim": 8, **TEXT},
        "image_token_index": 63, "mm_tokens_per_image": 4,
    },
    "Qwen2VL": {
        "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16,
                          "patch_size": 4, "mlp_ratio": 2},
        "text_config": {**TEXT, "rope_parameters": ROTARY}, "image_token_id": 63,
        "video_token_id": 62, "vision_start_token_id": 61, "vision_end_token_id": 60,
    },
    "Idefics3": {
        "vision_config": IMAGE, "text_config": {"model_type": "llama", **TEXT},
        "image_token_id": 63, "scale_factor": 2,
    },
    "InternVL": {
        "vision_config": {**IMAGE, "image_size": [16, 16], "patch_size": [4, 4]},
        "text_config": {"model_type": "qwen2", **TEXT}, "image_token_id": 63,
    },
    "Blip2": QUERIES,
}  # fmt: skip


@pytest.mark.parametrize("name", VISION_AND_TEXT)
def test_a_text_about_an_image_has_a_token_for_each_of_its_features(name):
    """LLaVA was not verified without --input: "tokens: 0, features: 4"."""
    model = make_model(f"{name}ForConditionalGeneration", **VISION_AND_TEXT[name]).eval()
    inputs = make_model_inputs(model)
    is_image = inputs["input_ids"] == 63
    model(**inputs)
    if name == "Blip2":  # it takes fewer tokens without an error
        assert is_image.sum() == QUERIES["num_query_tokens"]
        return
    assert is_image.any()
    inputs["input_ids"] = inputs["input_ids"].masked_fill(is_image, 5)
    with pytest.raises((ValueError, RuntimeError)):
        model(**inputs)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL"])
def test_a_vision_language_model_is_verified(name, save_model):
    model = make_model(f"{name}ForConditionalGeneration", **VISION_AND_TEXT[name])
    report = ckptool.verify(save_model(model), device="cpu")
    assert report.verdict.startswith("verified on cpu"), report.unrun_reason
    assert any("pixel_values" in note for note in report.notes)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_with_the_inputs_that_its_configuration_gives(name):
    model = MODELS[name]().eval()
    inputs = make_model_inputs(model)
    assert inputs
    assert ("decoder_input_ids" in inputs) == bool(model.config.is_encoder_decoder)
    model(**inputs)


@pytest.mark.parametrize("name", ["Whisper", "T5", "BART", "image to text"])
def test_an_encoder_decoder_model_is_verified(name, save_model):
    report = ckptool.verify(save_model(MODELS[name]()), device="cpu")
    assert report.verdict.startswith("verified on cpu"), report.verdict
    assert any("decoder_input_ids" in note for note in report.notes)


def test_inputs_that_do_not_fit_are_no_fault_of_the_checkpoint(save_model):
    """The token for images of this LLaVA is not in its vocabulary."""
    fields = {**CLIP_AND_LLAMA, "image_token_index": TEXT["vocab_size"]}
    model = make_model("LlavaForConditionalGeneration", **fields)
    with pytest.raises(ValueError, match="do not match"):
        model.eval()(**make_model_inputs(model))
    report = ckptool.verify(save_model(model), device="cpu")
    assert report.verdict.startswith("not verified")
    assert "also with the module's initial values" in report.unrun_reason
    assert report.exit_code == 2
