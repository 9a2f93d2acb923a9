#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizers: small tokenizers of each class, and the ids that AutoTokenizer gives for them.

    pip install transformers==4.57.6 sentencepiece protobuf
    python scripts/make_token_fixtures.py            # the tokenizers, and cases_4.json
    pip install transformers==5.24.0                 # in another environment
    python scripts/make_token_fixtures.py            # cases_5.json, of directories that version 5 writes

A case is a directory: `base` names the tokenizer.json, `from_vocabulary` takes its vocabulary alone (vocab.txt, or
vocab.json and merges.txt), `files` has what lies beside it.
"""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "tokenizers"
MODEL = Path(tempfile.gettempdir()) / "make_token_fixtures.model"
IS_5 = transformers.__version__.startswith("5.")
MAX_LENGTH = 16
TEXTS = [
    "", " ", "  two  blanks ", "red", " red", "Red Apple", "RED apples, GREEN pears!", "café Ünïcode naïve",
    "cafe\u0301 n\u0303", "日本語 中文字符", "red日本green", "한국어 ไทย", "🙂 👩‍👩‍👧 🇩🇪", "tab\tline\nend\r\n\x00\x07\u200b\u00a0x",
    "<s> red </s>", "a<s>b</s>c <unk> <pad>", "[CLS] red [SEP] [MASK][PAD]", "<mask> red<mask>", " <mask> ",
    "<bos>red<eos> <|endoftext|>x", "<new> <New> <NEW> two new", "it's DON'T we'll I'M", "12345 3.14 x=1;",
    "İstanbul ǅ ﬁ ſ", "</s>", "[SEP]", "<extra> x<extra>y",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
]
CORPUS = TEXTS + [
    "the quick brown fox jumps over the lazy dog and runs away from the red fox", "a tool that plays chess and go",
    "fruit such as apple apples pear pears lemon lemons", "one two three four five six seven eight nine ten",
] * 3


def train(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, post_processor=None):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    if decoder:
        tokenizer.decoder = decoder
    if post_processor:
        tokenizer.post_processor = post_processor(tokenizer)
    return tokenizer


def around(first, last):
    def make(tokenizer):
        tokens = [token for token in (first, last) if token]
        single = " ".join(filter(None, [first and f"{first}:0", "$A:0", last and f"{last}:0"]))
        return processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
        )
    return make


def bases():
    def bpe(size, special, **more):
        return trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **more)

    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    blank = normalizers.Replace(" ", "▁")

    def sentencepiece(special, normalizer, pre_tokenizer, first):
        # Byte tokens are words of the vocabulary, not added tokens.
        tokenizer = train(
            models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
            bpe(430, special + fallback, limit_alphabet=50), normalizer, pre_tokenizer,
            decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), around(first, None),
        )
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
        return Tokenizer.from_str(json.dumps(state))

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    yield "llama", sentencepiece(
        ["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), blank]), None, "<s>")
    yield "gemma", sentencepiece(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], blank, pre_tokenizers.Split(" ", "merged_with_previous"), "<bos>")
    yield "bytes", train(
        models.BPE(), bpe(360, ["<|begin|>", "<|endoftext|>", "<s>", "</s>"], **alphabet), None, byte_level,
        decoders.ByteLevel(), around("<|begin|>", None))
    yield "qwen2", train(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix=""), bpe(340, [], **alphabet), normalizers.NFC(),
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        decoders.ByteLevel(), lambda _: processors.ByteLevel(trim_offsets=False))
    yield "roberta", train(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix=""),
        bpe(360, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], **alphabet), None, byte_level, decoders.ByteLevel(),
        lambda t: processors.RobertaProcessing(("</s>", t.token_to_id("</s>")), ("<s>", t.token_to_id("<s>"))))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    yield "bert", train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=420, special_tokens=special, show_progress=False),
        normalizers.BertNormalizer(lowercase=False, strip_accents=False), pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(), around("[CLS]", "[SEP]"))
    yield "xlm_roberta", train(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False),
        normalizers.NFKC(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]),
        decoders.Metaspace(), around("<s>", "</s>"))
    yield "mpnet", train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(
            vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"], show_progress=False),
        normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(),
        around("<s>", "</s>"))

    def unigram(special, unknown, parts):
        return train(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token=unknown, show_progress=False),
            normalizers.Sequence(parts), pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace(),
            around("[CLS]", "[SEP]"))

    # As the converters of slow tokenizers make them.
    yield "albert", unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], "<unk>", [
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(),
        normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")])
    yield "deberta", unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[UNK]", [
        normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False, right=True)])


PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True} | flags


def cases():
    """name, base, model_type, files: what tokenizer_config.json and the others say."""
    def case(base, model_type, config=None, from_vocabulary=False, **files):
        if config is not None:
            files["tokenizer_config"] = config
        return {"base": base, "model_type": model_type, "from_vocabulary": from_vocabulary,
                "files": {f"{name}.json": value for name, value in files.items()}}

    llama = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for model_type, name in [("llama", "LlamaTokenizerFast"), ("mistral", "LlamaTokenizer"), ("phi3", "LlamaTokenizer")]:
        for bos in [True, False]:
            for eos in [True, False]:
                yield case("llama", model_type, llama | {"tokenizer_class": name, "add_bos_token": bos, "add_eos_token": eos})
    yield case("llama", "llama")
    yield case("llama", "llama", {})
    yield case("llama", "llama", llama | {"truncation_side": "left", "add_eos_token": True})
    yield case("llama", "llama", llama | {"pad_token": "<pad>", "additional_special_tokens": ["<extra>"]})
    yield case("llama", "llama", llama | {"bos_token": added("<bos>", __type="AddedToken"), "split_special_tokens": True})
    yield case("llama", "llama", llama | {"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True})
    yield case("llama", "llama", llama | {"extra_special_tokens": {"image_token": "<extra>"}})
    yield case("llama", "llama", llama | {"legacy": True, "use_default_system_prompt": True, "model_max_length": 4,
                                          "clean_up_tokenization_spaces": True, "padding_side": "left"})
    yield case("llama", "llama", {"tokenizer_class": "LlamaTokenizer"}, special_tokens_map={
        "bos_token": added("</s>"), "eos_token": "<s>", "unk_token": "<unk>", "additional_special_tokens": ["<extra>"]},
        added_tokens={"<new>": 430, "<extra>": 431})
    yield case("llama", "llama", llama | {"added_tokens_decoder": {
        "0": added("<unk>"), "1": added("<s>", lstrip=True, rstrip=True), "2": added("</s>", normalized=True),
        "430": added("<new>", special=False, normalized=True), "431": added("<extra>", lstrip=True)}})
    # With add_prefix_space, transformers converts the sentencepiece model once more.
    for prefix in [True, False, None]:
        for legacy in [True, False]:
            yield case("sentencepiece", "mistral", llama | {"add_prefix_space": prefix, "legacy": legacy})
    gemma = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    yield case("gemma", "gemma2")
    for bos in [True, False]:
        for eos in [True, False]:
            yield case("gemma", "gemma2", gemma | {"add_bos_token": bos, "add_eos_token": eos})
    end = {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>"}
    yield case("bytes", "llama", {"tokenizer_class": "PreTrainedTokenizerFast"} | end)
    yield case("bytes", "llama", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True} | end)
    yield case("bytes", "llama", {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": "left"} | end)
    yield case("bytes", "llama", {"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True} | end)
    yield case("bytes", "llama", {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False} | end)
    yield case("bytes", "llama", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True} | end)
    yield case("bytes", "llama", {"tokenizer_class": "GPTNeoXTokenizerFast", "add_eos_token": True} | end)
    yield case("bytes", "phi3", {"tokenizer_class": "GPT2TokenizerFast"} | end)
    yield case("bytes", "modernbert", {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": added(
        "<mask>", lstrip=True, __type="AddedToken"), "cls_token": "<s>", "sep_token": "</s>"})
    yield case("bytes", "modernbert", end)
    qwen = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
            "added_tokens_decoder": {"340": added("<|endoftext|>"), "341": added("<extra>")},
            "additional_special_tokens": ["<extra>"]}
    for vocabulary in [False, True]:
        yield case("qwen2", "qwen2", qwen, vocabulary)
        yield case("qwen2", "qwen3", qwen | {"add_bos_token": True}, vocabulary)
        yield case("qwen2", "qwen2", None, vocabulary)
    yield case("bytes", "llama", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True} | end, True)
    yield case("bytes", "llama", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True} | end, True)
    for vocabulary in [False, True]:
        yield case("roberta", "roberta", None, vocabulary)
        yield case("roberta", "roberta", {"tokenizer_class": "RobertaTokenizer"}, vocabulary)
        yield case("roberta", "roberta", {"add_prefix_space": True, "trim_offsets": False}, vocabulary)
        yield case("roberta", "roberta", {"cls_token": "</s>", "truncation_side": "left", "mask_token": added(
            "<mask>", __type="AddedToken", normalized=True)}, vocabulary)
    for name in ["bert", "distilbert"]:
        for vocabulary in [False, True]:
            yield case("bert", name, None, vocabulary)
            yield case("bert", name, {"do_lower_case": False}, vocabulary)
    bert = {"tokenizer_class": "BertTokenizer"}
    for vocabulary in [False, True]:
        for lower in [True, False]:
            for accents in [True, False, None]:
                yield case("bert", "bert", bert | {"do_lower_case": lower, "strip_accents": accents,
                                                   "tokenize_chinese_chars": accents is None}, vocabulary)
        yield case("bert", "bert", bert | {"do_basic_tokenize": False, "never_split": ["Red"], "cls_token": "<start>",
                                           "truncation_side": "left"}, vocabulary)
        yield case("bert", "bert", bert | {"additional_special_tokens": ["<New>"], "do_lower_case": True}, vocabulary,
                   added_tokens={"<New>": 420, "<extra>": 421})
        yield case("bert", "bert", {"tokenizer_class": "DistilBertTokenizer", "unk_token": "[UNK]"}, vocabulary)
    yield case("xlm_roberta", "xlm-roberta")
    yield case("xlm_roberta", "xlm-roberta", {"tokenizer_class": "XLMRobertaTokenizer", "mask_token": added(
        "<mask>", lstrip=True, __type="AddedToken")})
    yield case("xlm_roberta", "xlm-roberta", {"tokenizer_class": "XLMRobertaTokenizerFast", "truncation_side": "left",
                                              "bos_token": "</s>"})
    mpnet = {"tokenizer_class": "MPNetTokenizer", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
             "cls_token": "<s>", "unk_token": "[UNK]", "pad_token": "<pad>", "mask_token": "<mask>"}
    for vocabulary in [False, True]:
        yield case("mpnet", "mpnet", None, vocabulary)
        yield case("mpnet", "mpnet", mpnet | {"do_lower_case": True, "strip_accents": None}, vocabulary)
        yield case("mpnet", "mpnet", mpnet | {"do_lower_case": False, "tokenize_chinese_chars": False}, vocabulary)
        yield case("mpnet", "mpnet", mpnet | {"strip_accents": False, "mask_token": added(
            "<mask>", __type="AddedToken", normalized=True)}, vocabulary)
    albert = {"tokenizer_class": "AlbertTokenizer", "mask_token": added("[MASK]", lstrip=True, __type="AddedToken")}
    yield case("albert", "albert")
    yield case("albert", "albert", albert)
    yield case("albert", "albert", albert | {"truncation_side": "left", "mask_token": "[MASK]"})
    deberta = {"tokenizer_class": "DebertaV2Tokenizer", "vocab_type": "spm"}
    yield case("deberta", "deberta-v2")
    yield case("deberta", "deberta-v2", deberta | {"do_lower_case": False, "split_by_punct": False})
    yield case("deberta", "deberta-v2", deberta | {"additional_special_tokens": ["<extra>"], "mask_token": "<mask>"})
    yield case("bert", "electra")
    yield case("gemma", "gemma3_text")
    yield case("gemma", "gemma3_text", gemma | {"add_eos_token": True})
    yield case("bytes", "smollm3", end)
    yield case("bytes", "olmo2", {"tokenizer_class": "GPT2Tokenizer"} | end)
    yield case("bytes", "olmo2")
    yield case("bytes", "granite", {"tokenizer_class": "GPT2Tokenizer"} | end)
    if IS_5:
        yield case("bytes", "eurobert", {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"} | end)
        yield case("bert", "nomic_bert", bert)
        yield case("bert", "nomic_bert")


def make_sentencepiece():
    """A model as sentencepiece trains it, and its tokenizer.json."""
    import sentencepiece

    with open(MODEL, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
            character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
            minloglevel=2)
    return LlamaTokenizerFast(str(MODEL)).backend_tokenizer


# Keys that someone changes in a tokenizer_config.json of version 5.
EDITS = {
    0: {"add_eos_token": True}, 13: {"truncation_side": "left"}, 24: {"add_prefix_space": False},
    31: {"add_bos_token": False, "add_eos_token": True}, 37: {"add_prefix_space": True}, 44: {"add_bos_token": True},
    55: {"add_prefix_space": True}, 62: {"do_lower_case": True}, 66: {"tokenize_chinese_chars": False},
    70: {"strip_accents": False, "do_lower_case": False}, 86: {"add_eos_token": False},
}


def write(case, directory):
    """The directory that a case describes."""
    state = json.loads((OUT / f"{case['base']}.json").read_text(encoding="utf-8"))
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": case["model_type"]}))
    if not case["from_vocabulary"]:
        shutil.copy(OUT / f"{case['base']}.json", directory / "tokenizer.json")
    elif state["model"]["type"] == "WordPiece":
        words = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
        (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    else:
        (directory / "vocab.json").write_text(json.dumps(state["model"]["vocab"]), encoding="utf-8")
        merges = ["#version: 0.2"] + [" ".join(merge) for merge in state["model"]["merges"]]
        (directory / "merges.txt").write_text("".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    if case["base"] == "sentencepiece":
        shutil.copy(MODEL, directory / "tokenizer.model")
    for name, value in case["files"].items():
        (directory / name).write_text(json.dumps(value), encoding="utf-8")


def ids(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in TEXTS]


def main():
    transformers.utils.logging.set_verbosity_error()
    OUT.mkdir(exist_ok=True)
    if not IS_5:
        for name, tokenizer in [*bases(), ("sentencepiece", make_sentencepiece())]:
            if (OUT / f"{name}.json").exists() and name != "sentencepiece":
                continue  # trained again, words with equal scores would have other ids
            state = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
            (OUT / f"{name}.json").write_text(state, encoding="utf-8")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, case in enumerate(cases()):
            directory = Path(temporary) / str(number)
            write(case, directory)
            if IS_5:
                # What version 5 writes for it. The bases of such directories are theirs alone.
                saved = Path(temporary) / f"{number}s"
                AutoTokenizer.from_pretrained(directory).save_pretrained(saved)
                config = json.loads((saved / "tokenizer_config.json").read_text())
                case = {"base": json.loads((saved / "tokenizer.json").read_text()), "model_type": case["model_type"],
                        "files": {"tokenizer_config.json": config}}
                if edit := EDITS.get(number):
                    config |= edit
                    (saved / "tokenizer_config.json").write_text(json.dumps(config))
                (saved / "config.json").write_text(json.dumps({"model_type": case["model_type"]}))
                directory = saved
            found.append(case | {"ids": ids(directory)})
    if IS_5 and "all" not in sys.argv:
        found = [
            case for number, case in enumerate(found)
            if number in EDITS or number % 12 == 0 or case["model_type"] in ("mpnet", "albert", "deberta-v2") and number % 2
            or case["model_type"] in ("olmo2", "granite", "eurobert", "nomic_bert")
        ]
    text = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in found)
    text = f'{{"transformers":"{transformers.__version__}","max_length":{MAX_LENGTH},"texts":{json.dumps(TEXTS)},"cases":[\n{text}\n]}}\n'
    (OUT / f"cases_{5 if IS_5 else 4}.json").write_text(text, encoding="utf-8")
    print(len(found), "cases,", len(text), "bytes")


if __name__ == "__main__":
    main()
