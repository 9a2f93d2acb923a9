#!/usr/bin/env python3
"""Makes the numbers that tests/ compares with, from transformers, peft and torch.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors
    python scripts/make_fixtures.py [NAME...]

EuroBERT and NomicBERT are made once more with transformers==5.24.0, by their names: version 4 has no code for them.
For each of some small random models, decoders and encoders (grouped heads, several kinds of RoPE, tied and untied,
alpha not equal to r, odd lengths, padded here with the end token) it writes tests/fixtures/<name>/:
  config.json, model.safetensors     the base, as transformers saves it
  adapter/                           as peft saves it, with random A, B and score
  batch.json                         token ids, labels and the problem type
  expected.safetensors               logits, loss, each gradient, the parameters after five AdamW steps
and tests/fixtures/tokens.json: token ids of data/tiny-llama's tokenizer by transformers.
"""

import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
import transformers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama_tied": {
        "config": dict(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=8, rope_theta=1000.0, rope_scaling=LLAMA3, tie_word_embeddings=True,
            max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.2,
        ),
        "lora": dict(
            r=3, lora_alpha=5,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ),
        "labels": 5,
        "problem": "multi_label_classification",
        "lengths": [17, 1, 70, 33],
    },
    "llama_untied": {
        "config": dict(
            vocab_size=61, hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=1, head_dim=10, rope_theta=10000.0, tie_word_embeddings=False, attention_bias=True,
            max_position_embeddings=128, rms_norm_eps=1e-6, initializer_range=0.3,
        ),
        "lora": dict(r=2, lora_alpha=7, target_modules=["q_proj", "v_proj", "mlp.down_proj"]),
        "labels": 4,
        "problem": "single_label_classification",
        "lengths": [5, 29, 11],
    },
}
SMALL = dict(num_hidden_layers=3, max_position_embeddings=128, rms_norm_eps=1e-6, initializer_range=0.2)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS |= {
    "mistral": {  # a window shorter than a text, and than a tile of queries
        "class": "Mistral",
        "config": dict(
            **SMALL, vocab_size=53, hidden_size=36, intermediate_size=44, num_attention_heads=6, num_key_value_heads=3,
            head_dim=6, rope_theta=5000.0, sliding_window=9,
        ),
        "lora": dict(r=3, lora_alpha=4, target_modules=ALL),
        "labels": 3, "problem": "multi_label_classification", "lengths": [45, 3, 9],
    },
    "qwen2": {  # biases on q, k and v alone
        "class": "Qwen2",
        "config": dict(
            **SMALL, vocab_size=59, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=2000.0, tie_word_embeddings=True,
        ),
        "lora": dict(r=2, lora_alpha=6, target_modules=ALL),
        "labels": 4, "problem": "multi_label_classification", "lengths": [19, 34],
    },
    "qwen3": {  # norms of each head's q and k
        "class": "Qwen3",
        "config": dict(
            **SMALL, vocab_size=67, hidden_size=30, intermediate_size=50, num_attention_heads=6, num_key_value_heads=2,
            head_dim=8, rope_theta=3000.0,
        ),
        "lora": dict(r=3, lora_alpha=5, target_modules="all-linear"),
        "labels": 5, "problem": "multi_label_classification", "lengths": [26, 1, 13],
    },
}
MODELS |= {
    "qwen2_window": {  # a window in the layers from max_window_layers on
        "class": "Qwen2",
        "config": dict(
            **SMALL, vocab_size=47, hidden_size=24, intermediate_size=36, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=2000.0, use_sliding_window=True, sliding_window=7, max_window_layers=1,
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules=ALL),
        "labels": 3, "problem": "multi_label_classification", "lengths": [40, 6],
    },
    "gemma2": {  # norms on both sides, bent scores, a window in every other layer
        "class": "Gemma2",
        "config": dict(
            **SMALL, vocab_size=71, hidden_size=28, intermediate_size=42, num_attention_heads=4, num_key_value_heads=2,
            head_dim=10, query_pre_attn_scalar=13, sliding_window=8, attn_logit_softcapping=5.0,
            attn_implementation="eager",
        ),
        "lora": dict(r=3, lora_alpha=7, target_modules=ALL),
        "labels": 4, "problem": "multi_label_classification", "lengths": [37, 5, 12],
    },
    "phi3": {  # q, k, v and gate, up as one; a window; a part of each head rotated
        "class": "Phi3",
        "config": dict(
            **SMALL, vocab_size=57, hidden_size=40, intermediate_size=52, num_attention_heads=5, num_key_value_heads=5,
            sliding_window=11, partial_rotary_factor=0.75,
        ),
        "lora": dict(r=3, lora_alpha=4, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        "labels": 5, "problem": "multi_label_classification", "lengths": [33, 2, 14],
    },
    "phi3_long": {  # LongRoPE within the context of pretraining
        "class": "Phi3",
        "config": dict(
            **(SMALL | dict(max_position_embeddings=256)), vocab_size=43, hidden_size=24, intermediate_size=36,
            num_attention_heads=3, num_key_value_heads=3, original_max_position_embeddings=64,
            rope_scaling={
                "type": "longrope", "short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 3.0, 5.0, 8.0],
            },
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules="all-linear"),
        "labels": 3, "problem": "multi_label_classification", "lengths": [50, 7],
    },
}
MODELS |= {
    "gemma3": {  # norms of q and k too, two rotary embeddings, one layer in three without a window
        "class": "Gemma3Text",
        "config": dict(
            **(SMALL | dict(num_hidden_layers=4)), vocab_size=73, hidden_size=28, intermediate_size=38,
            num_attention_heads=4, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=11, sliding_window=7,
            sliding_window_pattern=3, rope_theta=4000.0, rope_local_base_freq=70.0,
            rope_scaling={"rope_type": "linear", "factor": 3.0}, attn_implementation="eager",
        ),
        "lora": dict(r=3, lora_alpha=7, target_modules=ALL),
        "labels": 4, "problem": "multi_label_classification", "lengths": [39, 5, 12],
    },
    "gemma3_both_sides": {  # as EmbeddingGemma: no causal mask
        "class": "Gemma3Text",
        "config": dict(
            **SMALL, vocab_size=41, hidden_size=24, intermediate_size=34, num_attention_heads=3, num_key_value_heads=1,
            head_dim=8, query_pre_attn_scalar=9, sliding_window=12, sliding_window_pattern=2,
            use_bidirectional_attention=True, attn_implementation="eager",
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules="all-linear"),
        "labels": 3, "problem": "multi_label_classification", "lengths": [30, 4],
    },
    "smollm3": {  # layers that do not rotate
        "class": "SmolLM3",
        "config": dict(
            **(SMALL | dict(num_hidden_layers=4)), vocab_size=63, hidden_size=36, intermediate_size=46,
            num_attention_heads=6, num_key_value_heads=2, rope_theta=900.0, no_rope_layer_interval=3,
        ),
        "lora": dict(r=3, lora_alpha=5, target_modules=ALL),
        "labels": 4, "problem": "multi_label_classification", "lengths": [31, 2, 17],
    },
    "olmo2": {  # norms after the blocks, and of all heads together
        "class": "Olmo2",
        "config": dict(
            **SMALL, vocab_size=69, hidden_size=32, intermediate_size=44, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=700.0,
        ),
        "lora": dict(r=2, lora_alpha=5, target_modules=ALL),
        "labels": 5, "problem": "multi_label_classification", "lengths": [28, 9],
    },
    "granite": {  # multipliers of embeddings, scores and sums
        "class": "Granite",
        "config": dict(
            **SMALL, vocab_size=51, hidden_size=30, intermediate_size=42, num_attention_heads=5, num_key_value_heads=1,
            embedding_multiplier=3.5, residual_multiplier=0.22, attention_multiplier=0.3, logits_scaling=8.0,
        ),
        "lora": dict(r=3, lora_alpha=4, target_modules=ALL),
        "labels": 3, "problem": "multi_label_classification", "lengths": [22, 6, 1],
    },
}
BERT = dict(
    vocab_size=83, hidden_size=36, intermediate_size=60, num_hidden_layers=3, num_attention_heads=6,
    max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
MODELS |= {
    "bert": {  # the base brings its pooler, which stays frozen and has an adapter, being linear
        "class": "Bert",
        "config": dict(**BERT),
        "lora": dict(r=3, lora_alpha=5, target_modules="all-linear"),
        "labels": 4, "problem": "multi_label_classification", "lengths": [21, 1, 40],
    },
    "bert_no_pooler": {  # it does not: the pooler is trained in full
        "class": "Bert",
        "config": dict(**BERT),
        "drop": ["bert.pooler."], "strip": "bert.",
        "lora": dict(r=2, lora_alpha=5, target_modules=["query", "value", "dense"], modules_to_save=["pooler"]),
        "labels": 3, "problem": "single_label_classification", "lengths": [9, 25],
    },
    "roberta": {
        "class": "Roberta",
        "config": dict(**BERT, type_vocab_size=1, hidden_act="gelu_new"),
        "lora": dict(r=2, lora_alpha=3, target_modules=["query", "value"]),
        "labels": 5, "problem": "multi_label_classification", "lengths": [18, 3, 30],
    },
    "xlm_roberta": {
        "class": "XLMRoberta",
        "config": dict(**BERT, type_vocab_size=1),
        "lora": dict(r=3, lora_alpha=4, target_modules="all-linear"),
        "labels": 3, "problem": "multi_label_classification", "lengths": [28, 7],
    },
    "distilbert": {  # pre_classifier belongs to the head
        "class": "DistilBert",
        "config": dict(
            vocab_size=79, dim=30, hidden_dim=44, n_layers=3, n_heads=5, max_position_embeddings=64,
            initializer_range=0.2, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        ),
        "lora": dict(r=3, lora_alpha=7, target_modules=["q_lin", "v_lin", "lin1"], modules_to_save=["pre_classifier"]),
        "labels": 4, "problem": "multi_label_classification", "lengths": [13, 31, 2],
    },
}
DEBERTA = dict(
    **(BERT | dict(max_position_embeddings=40)), relative_attention=True, pos_att_type=["p2c", "c2p"],
)
MODELS |= {
    "electra": {  # embeddings of another width
        "class": "Electra",
        "config": dict(**BERT, embedding_size=20),
        "lora": dict(r=3, lora_alpha=5, target_modules="all-linear"),
        "labels": 4, "problem": "multi_label_classification", "lengths": [19, 2, 33],
    },
    "albert": {  # two groups, each used twice; the pooler has an adapter
        "class": "Albert",
        "config": dict(
            **(BERT | dict(num_hidden_layers=4)), embedding_size=14, num_hidden_groups=2, classifier_dropout_prob=0.0,
        ),
        "lora": dict(r=2, lora_alpha=5, target_modules="all-linear"),
        "labels": 3, "problem": "multi_label_classification", "lengths": [23, 4],
    },
    "albert_inner": {  # a group of two layers, used twice
        "class": "Albert",
        "config": dict(
            **(BERT | dict(num_hidden_layers=2)), embedding_size=36, inner_group_num=2, classifier_dropout_prob=0.0,
        ),
        "lora": dict(r=3, lora_alpha=4, target_modules=["query", "value", "attention.dense", "ffn"]),
        "labels": 4, "problem": "multi_label_classification", "lengths": [12, 30],
    },
    "mpnet": {  # a number for each head and distance
        "class": "MPNet",
        "config": dict(**(BERT | dict(max_position_embeddings=260))),
        "lora": dict(r=3, lora_alpha=4, target_modules=["q", "v", "o", "intermediate.dense"]),
        "labels": 5, "problem": "multi_label_classification", "lengths": [190, 3, 30],
    },
    "deberta_v3": {  # shared projections, logarithmic buckets, no positions, as microsoft/deberta-v3
        "class": "DebertaV2",
        "config": dict(
            **DEBERTA, position_biased_input=False, position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm",
            max_relative_positions=-1,
        ),
        "lora": dict(r=3, lora_alpha=5, target_modules="all-linear", modules_to_save=["pooler"]),
        "labels": 4, "problem": "multi_label_classification", "lengths": [36, 1, 70],
    },
    "deberta_v2": {  # projections of their own, every distance its row, positions, types, narrow embeddings
        "class": "DebertaV2",
        "config": dict(
            **(DEBERTA | dict(max_position_embeddings=45)), max_relative_positions=9, embedding_size=22,
            type_vocab_size=2,
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules="all-linear", modules_to_save=["pooler"]),
        "labels": 3, "problem": "single_label_classification", "lengths": [27, 6],
    },
    "deberta_c2p": {  # one kind of score by distance
        "class": "DebertaV2",
        "config": dict(
            **(DEBERTA | dict(pos_att_type="c2p")), position_biased_input=False, position_buckets=6,
            max_relative_positions=30, share_att_key=True,
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules=["query_proj", "value_proj"], modules_to_save=["pooler"]),
        "labels": 3, "problem": "multi_label_classification", "lengths": [21, 8],
    },
}
MODERNBERT = dict(
    vocab_size=89, hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=128, initializer_range=0.2, local_attention=10, global_rope_theta=900.0,
    local_rope_theta=50.0, attn_implementation="sdpa", reference_compile=False, cls_token_id=0, sep_token_id=88,
)
MODELS |= {
    "modernbert": {
        "class": "ModernBert",
        "config": dict(**MODERNBERT),
        "lora": dict(r=3, lora_alpha=5, target_modules=["Wqkv", "attn.Wo", "Wi"], modules_to_save=["head"]),
        "labels": 4, "problem": "multi_label_classification", "lengths": [45, 3, 20],
    },
    "modernbert_mean": {  # pooled by mean; every bias that there can be
        "class": "ModernBert",
        "config": dict(
            **MODERNBERT, classifier_pooling="mean", norm_bias=True, attention_bias=True, mlp_bias=True,
            classifier_bias=True,
        ),
        "lora": dict(r=2, lora_alpha=3, target_modules="all-linear", modules_to_save=["head"]),
        "labels": 3, "problem": "multi_label_classification", "lengths": [38, 5],
    },
}
EUROBERT = dict(
    **SMALL, vocab_size=77, hidden_size=36, intermediate_size=52, num_attention_heads=6, num_key_value_heads=2,
)
NOMIC = dict(
    vocab_size=81, hidden_size=32, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.2,
)
MODELS |= {
    "eurobert": {  # the mean of each token's logits; heads of another width
        "class": "EuroBert", "since": 5,
        "config": dict(**EUROBERT, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 900.0}),
        "drop": ["dense."],
        "lora": dict(r=3, lora_alpha=5, target_modules=ALL, modules_to_save=["dense"]),
        "labels": 4, "problem": "multi_label_classification", "lengths": [37, 1, 18],
    },
    "eurobert_mean": {  # every bias that there can be; a scaled rotary embedding
        "class": "EuroBert", "since": 5,
        "config": dict(
            **EUROBERT, classifier_pooling="mean", attention_bias=True, mlp_bias=True,
            rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 200.0},
        ),
        "drop": ["dense."],
        "lora": dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["dense"]),
        "labels": 3, "problem": "single_label_classification", "lengths": [25, 6],
    },
    "eurobert_bos": {
        "class": "EuroBert", "since": 5,
        "config": dict(
            **(EUROBERT | dict(num_key_value_heads=6)), classifier_pooling="bos",
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        ),
        "drop": ["dense."], "strip": "model.",
        "lora": dict(r=3, lora_alpha=7, target_modules="all-linear", modules_to_save=["dense"]),
        "labels": 5, "problem": "multi_label_classification", "lengths": [14, 33],
    },
    "nomic_bert": {  # names of transformers 5; the pooler is trained in full
        "class": "NomicBert", "since": 5,
        "config": dict(**NOMIC, rope_parameters={"rope_type": "default", "rope_theta": 400.0}),
        "drop": ["nomic_bert.pooler."], "strip": "nomic_bert.",
        "lora": dict(
            r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
            modules_to_save=["pooler"],
        ),
        "labels": 4, "problem": "multi_label_classification", "lengths": [31, 2, 17],
    },
    "nomic_bert_fused": {  # names of the Hub's files, which transformers 5 writes, too: q, k and v as one
        "class": "NomicBert", "since": 5,
        "config": dict(
            **NOMIC, head_dim=6, type_vocab_size=1, hidden_act="gelu_new",
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
        ),
        "as_saved": True,
        "lora": dict(r=2, lora_alpha=3, target_modules="all-linear"),
        "labels": 3, "problem": "single_label_classification", "lengths": [22, 9],
    },
}
STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 5, 0.01, 0.1, 1.0


def short(name: str) -> str:
    """A parameter's name as peft saves it."""
    return name.replace(".default", "").replace("modules_to_save.", "")


def classifier_class(family: str) -> type:
    """The family's classifier; where transformers has none, as it would generate it from its generic one."""
    name = f"{family}ForSequenceClassification"
    if found := getattr(transformers, name, None):
        return found
    from transformers.modeling_layers import GenericForSequenceClassification

    module = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
    return type(name, (GenericForSequenceClassification, getattr(module, f"{family}PreTrainedModel")), {})


def saved_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors by the names that `save_pretrained` gives them."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def make(name: str, spec: dict) -> None:
    torch.manual_seed(len(name))
    out = OUT / name
    shutil.rmtree(out, ignore_errors=True)
    eos = spec["config"]["vocab_size"] - 1
    family = spec.get("class", "Llama")
    # RoBERTa counts positions from behind the padding token's: a high id would leave none.
    pad = 1 if "Roberta" in family or family == "MPNet" else eos
    config = getattr(transformers, f"{family}Config")(
        **spec["config"], num_labels=spec["labels"], problem_type=spec["problem"], pad_token_id=pad, eos_token_id=eos,
        bos_token_id=0,
    )
    implementation = {"attn_implementation": spec["config"].get("attn_implementation")}
    base = classifier_class(family)._from_config(
        config, **{key: value for key, value in implementation.items() if value}
    )
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in key.lower():
                low = -0.5 if family.startswith("Gemma") else 0.5
                parameter.uniform_(low, low + 1.0)
    # As a checkpoint on the Hub: the language model without a classification head.
    out.mkdir(parents=True)
    head = ("score", "classifier", "pre_classifier", "head.", "pooler.", *spec.get("drop", []))
    prefix = spec.get("strip", "")
    state = saved_state(base) if spec.get("as_saved") else base.state_dict()
    save_file(
        {
            key.removeprefix(prefix): value.contiguous()
            for key, value in state.items()
            if not key.startswith(head)
        },
        out / "model.safetensors", {"format": "pt"},
    )
    saved = config.to_dict()
    for key in ("id2label", "label2id", "problem_type", "num_labels", "transformers_version"):
        saved.pop(key, None)
    if spec["config"].get("use_bidirectional_attention"):
        # The class halves the window that it is given, and would halve what it writes once more.
        saved["sliding_window"] = spec["config"]["sliding_window"]
    (out / "config.json").write_text(json.dumps(saved, indent=1) + "\n")

    lora = LoraConfig(task_type="SEQ_CLS", lora_dropout=0.0, bias="none", **spec["lora"])
    model = get_peft_model(base, lora)
    trained = {short(key): value for key, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.normal_(0, 0.2)
    model.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)

    lengths = spec["lengths"]
    tokens = [torch.randint(2 if pad == 1 else 0, eos, (length,)).tolist() for length in lengths]
    if spec["problem"] == "multi_label_classification":
        labels = torch.randint(0, 2, (len(lengths), spec["labels"])).float()
        targets, rows = labels, labels.tolist()
    else:
        targets = torch.randint(0, spec["labels"], (len(lengths),))
        rows = torch.nn.functional.one_hot(targets, spec["labels"]).float().tolist()
    (out / "batch.json").write_text(
        json.dumps({"token_ids": tokens, "labels": rows, "problem_type": spec["problem"]}) + "\n"
    )
    width = max(lengths)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])

    expected = {}
    # As transformers' trainer groups them.
    decays = {key: not (key.endswith("bias") or "norm" in key.rsplit(".", 2)[-2]) for key in trained}
    optimizer = torch.optim.AdamW(
        [
            {"params": [trained[key] for key in trained if decays[key]], "weight_decay": WEIGHT_DECAY},
            {"params": [trained[key] for key in trained if not decays[key]], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        result = model(input_ids=ids, attention_mask=mask, labels=targets)
        result.loss.backward()
        if step == 0:
            expected["logits"] = result.logits.detach().clone()
            expected["loss"] = result.loss.detach().reshape(1)
            for key, parameter in trained.items():
                expected[f"gradient.{key}"] = parameter.grad.detach().clone()
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)
        if step == 0:
            expected["norm"] = norm.detach().reshape(1)
        optimizer.step()
        schedule.step()
    for key, value in get_peft_model_state_dict(model).items():
        expected[f"after.{key}"] = value.detach().clone().contiguous()
    expected["losses_end"] = result.loss.detach().reshape(1)
    save_file(expected, out / "expected.safetensors")
    print(name, "loss", expected["loss"].item(), "norm", expected["norm"].item(), len(expected), "tensors")


def tokens() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "data" / "tiny-llama" / "tokenizer.json"))
    texts = [
        "A small text editor.",
        "  two  spaces\n\nand newlines\t1234567 ",
        "naïve café — 日本語 🎈",
        "DON'T stop; it's v2.0.1-rc3 (beta)!",
        "",
        " ",
        "word " * 60,
    ]
    rows = [{"text": text, "token_ids": tokenizer(text, truncation=True, max_length=32)["input_ids"]} for text in texts]
    (OUT / "tokens.json").write_text(json.dumps({"max_length": 32, "rows": rows}, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    version = int(transformers.__version__.split(".")[0])
    for name in sys.argv[1:] or [name for name, spec in MODELS.items() if spec.get("since", version) <= version]:
        make(name, MODELS[name])
    if len(sys.argv) == 1:
        tokens()


if __name__ == "__main__":
    main()
