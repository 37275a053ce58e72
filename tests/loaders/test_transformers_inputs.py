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
    """LLaVA needs one token of the text for each patch of the image."""
    model = make_model(
        "LlavaForConditionalGeneration",
        vision_config=transformers.CLIPVisionConfig(**CLIP_VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=63,
    )
    with pytest.raises(ValueError, match="do not match"):
        model.eval()(**make_model_inputs(model))
    report = ckptool.verify(save_model(model), device="cpu")
    assert report.verdict.startswith("not verified")
    assert "also with the module's initial values" in report.unrun_reason
    assert report.exit_code == 2
