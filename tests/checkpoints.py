"""Small checkpoints with random weights, of each kind that is read, made on the spot."""

import json

import numpy as np
import torch

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
SPEECH = (
    "wav2vec2",
    "wav2vec2-layer",
    "hubert",
    "hubert-layer",
    "wavlm",
    "wavlm-layer",
    "whisper",
)
TEXT = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "mpnet",
    "modernbert",
)
IMAGE = ("clip", "siglip", "dinov2", "vit")
WORDS = [
    "good",
    "day",
    "un",
    "##believ",
    "##able",
    "really",
    "so",
    "##o",
    "bad",
    "it",
    ",",
    "'",
    "s",
]


def saved(model, folder, seed=0):
    """The model with random weights of a size that lets its layers differ, in a folder."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "original0" not in name:
                weight.normal_(0, 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.1)
    model.eval().save_pretrained(folder)
    return model


def write(folder, name, plain):
    (folder / name).write_text(json.dumps(plain))


def speech(folder, kind, **more):
    """wav2vec2 and its kin; with "-layer" normed by layer, so that they take padding."""
    import transformers as hf

    kind, _, norm = kind.partition("-")
    if kind == "whisper":
        return whisper(folder)
    config = getattr(
        hf, {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[kind] + "Config"
    )(
        **SMALL,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm or "group",
        do_stable_layer_norm=bool(norm),
        conv_bias=bool(norm),
        vocab_size=8,
        **more,
    )
    model = saved(getattr(hf, type(config).__name__[:-6] + "ForCTC")(config), folder)
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=bool(norm))
    extractor.save_pretrained(folder)
    return model


def whisper(folder):
    import transformers as hf

    config = hf.WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=100,
        vocab_size=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = saved(hf.WhisperForConditionalGeneration(config), folder)
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return model


def text(folder, kind):
    """A text encoder, and a tokenizer of word pieces or of bytes."""
    import transformers as hf

    if kind in {"roberta", "modernbert"}:
        size = byte_pieces(folder, kind)
    else:
        size = word_pieces(folder, kind)
    names = {
        "bert": "Bert",
        "roberta": "Roberta",
        "xlm-roberta": "XLMRoberta",
        "electra": "Electra",
    }
    names |= {"distilbert": "DistilBert", "deberta-v2": "DebertaV2", "mpnet": "MPNet"}
    names |= {"modernbert": "ModernBert"}
    settings = {**SMALL, "vocab_size": size, "max_position_embeddings": 66, "pad_token_id": 1}
    if kind == "distilbert":
        settings |= {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48}
    if kind == "electra":
        settings |= {"embedding_size": 16}
    if kind == "deberta-v2":
        settings |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    if kind == "modernbert":
        settings |= {"local_attention": 16, "global_attn_every_n_layers": 3}
        settings |= {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    config = getattr(hf, names[kind] + "Config")(**settings)
    return saved(getattr(hf, names[kind] + "ForMaskedLM")(config), folder)


def word_pieces(folder, kind):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*special, *WORDS, *letters, *(f"##{c}" for c in letters)]
    numbers = {piece: at for at, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=special[3]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))
    keep_tokenizer(folder, tokenizer, pad="[PAD]")
    return len(vocabulary)


def byte_pieces(folder, kind):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary += sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "o"), ("Ġ", "g"), ("Ġg", "oo"), ("g", "oo"), ("goo", "d"), ("Ġgoo", "d")]
    vocabulary += [a + b for a, b in merges]
    numbers = {piece: at for at, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=kind == "roberta", add_prefix_space=False
    )
    keep_tokenizer(folder, tokenizer, pad="<pad>")
    return len(vocabulary)


def keep_tokenizer(folder, tokenizer, pad):
    import transformers as hf

    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad).save_pretrained(folder)


def image(folder, kind):
    import transformers as hf

    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        # As on the hub: with its text half, which is not needed.
        words = {**SMALL, "vocab_size": 9, "max_position_embeddings": 8}
        config = hf.CLIPConfig(text_config=words, vision_config=vision, projection_dim=24)
        model = hf.CLIPModel(config)
    elif kind == "siglip":
        words = {**SMALL, "vocab_size": 9, "max_position_embeddings": 8}
        model = hf.SiglipModel(hf.SiglipConfig(text_config=words, vision_config=vision))
    elif kind == "dinov2":
        model = hf.Dinov2Model(hf.Dinov2Config(**{**vision, "image_size": 24, "mlp_ratio": 2}))
    else:
        model = hf.ViTForImageClassification(hf.ViTConfig(**vision, num_labels=3))
    show(folder, center=kind in {"clip", "dinov2"})
    return saved(model, folder)


def video(folder):
    import transformers as hf

    config = hf.VideoMAEConfig(
        **SMALL, image_size=16, patch_size=8, num_frames=4, tubelet_size=2, num_labels=2
    )
    show(folder, center=True)
    return saved(hf.VideoMAEForVideoClassification(config), folder)


def show(folder, center):
    square = {"height": 16, "width": 16}
    plain = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.45, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "do_resize": True,
        "size": {"shortest_edge": 18} if center else square,
    }
    if center:
        plain |= {"do_center_crop": True, "crop_size": square}
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "preprocessor_config.json", plain)


def copied(folder, to):
    """A checkpoint somewhere else."""
    to.mkdir(parents=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def hum(seconds, seed=0):
    """Sound, int16, that is not the same from second to second."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    wave = np.sin(2 * np.pi * (150 + 100 * seed + 40 * np.sin(time)) * time)
    return np.round(9000 * wave + random.normal(0, 900, len(time))).astype(np.int16)


def recogniser(folder, **generation):
    """A Whisper that says something of bytes, with the settings that word times need."""
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    text = sorted(pre_tokenizers.ByteLevel.alphabet())
    text += ["go", "so", "it", "Ġgo", "Ġso", "Ġit", "es"]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|ja|>"]
    special += ["<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
    special += [f"<|{number * 0.02:.2f}|>" for number in range(101)]
    numbers = {piece: at for at, piece in enumerate([*text, *special])}
    merges = [("g", "o"), ("s", "o"), ("i", "t"), ("Ġ", "go"), ("Ġ", "so"), ("Ġ", "it"), ("e", "s")]
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = numbers[special[0]]
    config = hf.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=100,
        max_target_positions=40,
        vocab_size=len(numbers),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
        median_filter_width=3,
    )
    model = hf.WhisperForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(
        **{
            "pad_token_id": end,
            "bos_token_id": end,
            "eos_token_id": end,
            "decoder_start_token_id": end + 1,
            "max_length": 16,
            "alignment_heads": [[0, 0], [1, 1]],
            "is_multilingual": True,
            "lang_to_id": {name: numbers[name] for name in special[2:5]},
            "task_to_id": {"transcribe": end + 5, "translate": end + 6},
            "no_timestamps_token_id": end + 7,
            "suppress_tokens": sorted(
                number
                for piece, number in numbers.items()
                if number != end
                and not (piece.removeprefix("Ġ").isalnum() and piece.isascii())
                and not piece.startswith("Ġ")
            ),
            **generation,
        }
    )
    saved(model, folder)
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return model


# A language of tones: what a small CTC head learns in seconds.

LETTERS = {"a": 300, "b": 430, "c": 600, "d": 850, "e": 1200, "f": 1700, "g": 2400, "h": 3400}
VOCABULARY = {"<pad>": 0, "|": 1, **{letter: at for at, letter in enumerate(LETTERS, start=2)}}


def utterance(random, words=None):
    """Words of tones in noise: int16 samples, the words, their spans, and those of letters."""
    if words is None:
        lengths = random.integers(2, 5, random.integers(2, 5))
        words = ["".join(random.choice(list(LETTERS), length)) for length in lengths]
    pieces = [np.zeros(round(random.uniform(0.1, 0.5) * 16_000))]
    at, spans, letters = len(pieces[0]), [], []
    for word in words:
        begin = at
        for letter in word:
            time = np.arange(round(random.uniform(0.08, 0.16) * 16_000)) / 16_000
            phase = 2 * np.pi * LETTERS[letter] * random.uniform(0.97, 1.03) * time
            fade = np.minimum(1, np.minimum(time, time[::-1]) * 100)
            pieces.append(6000 * fade * (np.sin(phase) + 0.3 * np.sin(2 * phase)))
            letters.append((letter, at / 16_000, (at + len(time)) / 16_000))
            at += len(time)
        spans.append((begin / 16_000, at / 16_000))
        pieces.append(np.zeros(round(random.uniform(0.06, 0.5) * 16_000)))
        middle = (at + len(pieces[-1]) / 2) / 16_000
        letters.append(("|", middle - 0.01, middle + 0.01))
        at += len(pieces[-1])
    sound = np.concatenate(pieces) + random.normal(0, 300, at)
    return np.round(sound).astype(np.int16), words, spans, letters[:-1]


def ctc(folder, steps=(40, 25), seed=0, **more):
    """A wav2vec2 head of the language of tones, trained by each step's letter, then by CTC."""
    import transformers as hf

    config = hf.Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(24, 32, 48, 48),
        conv_stride=(5, 4, 4, 4),
        conv_kernel=(40, 8, 8, 4),
        num_feat_extract_layers=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=len(VOCABULARY),
        pad_token_id=0,
        ctc_loss_reduction="mean",
        apply_spec_augment=False,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0),
        **dict.fromkeys(("feat_proj_dropout", "final_dropout", "layerdrop"), 0.0),
        **more,
    )
    torch.manual_seed(seed)
    model, random = hf.Wav2Vec2ForCTC(config), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=sum(steps) or 1)
    for step in range(sum(steps)):
        loss = _loss(model, [utterance(random) for _ in range(8)], by_step=step < steps[0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    write(folder, "vocab.json", VOCABULARY)
    return model


def _loss(model, some, by_step):
    longest = max(len(sound) for sound, *_ in some)
    waves, mask = torch.zeros(len(some), longest), torch.zeros(len(some), longest, dtype=torch.long)
    for row, (sound, *_) in enumerate(some):
        wave = torch.from_numpy(sound / 32768).float()
        waves[row, : len(sound)] = (wave - wave.mean()) / wave.std()
        mask[row, : len(sound)] = 1
    if by_step:
        logits = model(waves, attention_mask=mask).logits
        wanted = torch.zeros(logits.shape[:2], dtype=torch.long)
        for row, (*_, letters) in enumerate(some):
            for letter, begin, end in letters:
                wanted[row, round(begin * 50) : round(end * 50)] = VOCABULARY[letter]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted)
    spelt = [torch.tensor([VOCABULARY[each] for each in "|".join(words)]) for _, words, *_ in some]
    labels = torch.nn.utils.rnn.pad_sequence(spelt, batch_first=True, padding_value=-100)
    return model(waves, attention_mask=mask, labels=labels).loss
