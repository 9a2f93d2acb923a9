#!/usr/bin/env python3
"""Makes tests/fixtures/configs/: config.json of every family as transformers 4 and 5 write it.

    pip install torch==2.15.0 transformers==4.57.6      # then again with transformers==5.24.0
    python scripts/make_config_fixtures.py

For each case it writes the keys that were given, all keys with transformers' defaults, and the file that
`save_pretrained` writes. tests/families.rs holds all of them to be read as the same model.
"""

import json
import tempfile
from pathlib import Path

import transformers

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "configs"
SIZES = dict(vocab_size=50, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4)
GROUPED = SIZES | dict(num_key_value_heads=2)
DISTIL = dict(vocab_size=50, dim=24, hidden_dim=36, n_layers=3, n_heads=4)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LONG = dict(type="longrope", short_factor=[1.0, 1.2, 1.5], long_factor=[2.0, 3.0, 5.0])
CASES = {
    "llama": [{}, SIZES, GROUPED | dict(head_dim=10, rope_theta=500.0, rope_scaling=LLAMA3, attention_bias=True,
              mlp_bias=True), SIZES | dict(rope_scaling=dict(type="linear", factor=3.0), rms_norm_eps=1e-5)],
    "mistral": [{}, GROUPED, GROUPED | dict(sliding_window=None, head_dim=8), GROUPED | dict(rope_theta=77.0, sliding_window=9)],
    "qwen2": [{}, GROUPED, GROUPED | dict(use_sliding_window=True, max_window_layers=1),
              GROUPED | dict(use_sliding_window=True, sliding_window=5,
                             layer_types=["full_attention", "sliding_attention", "full_attention"])],
    "qwen3": [{}, GROUPED, GROUPED | dict(use_sliding_window=True, sliding_window=7, max_window_layers=2, attention_bias=True)],
    "gemma2": [{}, GROUPED, GROUPED | dict(query_pre_attn_scalar=13, attn_logit_softcapping=None, sliding_window=6,
               layer_types=["full_attention", "sliding_attention", "full_attention"], head_dim=10)],
    "phi3": [{}, SIZES, SIZES | dict(hidden_size=64, partial_rotary_factor=0.5, sliding_window=11, resid_pdrop=0.25),
             SIZES | dict(max_position_embeddings=256, original_max_position_embeddings=64, rope_scaling=LONG)],
    "gemma3_text": [{}, GROUPED, GROUPED | dict(query_pre_attn_scalar=13, sliding_window=6, head_dim=10, rope_theta=500.0,
                    layer_types=["full_attention", "sliding_attention", "full_attention"], rope_local_base_freq=80.0,
                    rope_scaling=dict(rope_type="linear", factor=8.0)), GROUPED | dict(sliding_window_pattern=2)],
    "smollm3": [{}, GROUPED, GROUPED | dict(no_rope_layer_interval=2, attention_bias=True, mlp_bias=True),
                GROUPED | dict(no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=5, rope_theta=300.0)],
    "olmo2": [{}, SIZES, GROUPED | dict(rope_theta=300.0, rms_norm_eps=1e-6, attention_bias=True)],
    "granite": [{}, SIZES, GROUPED | dict(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.015,
                logits_scaling=8.0, mlp_bias=True)],
    "bert": [{}, SIZES, SIZES | dict(hidden_act="gelu_new", classifier_dropout=0.3, type_vocab_size=3, layer_norm_eps=1e-6)],
    "roberta": [{}, SIZES, SIZES | dict(max_position_embeddings=70, pad_token_id=3)],
    "xlm-roberta": [{}, SIZES, SIZES | dict(hidden_dropout_prob=0.2)],
    "distilbert": [{}, DISTIL, DISTIL | dict(seq_classif_dropout=0.4, activation="relu")],
    "electra": [{}, SIZES, SIZES | dict(embedding_size=24, classifier_dropout=0.3)],
    "albert": [{}, SIZES, SIZES | dict(embedding_size=10, num_hidden_groups=3, inner_group_num=2, hidden_dropout_prob=0.2)],
    "mpnet": [{}, SIZES, SIZES | dict(max_position_embeddings=70, hidden_dropout_prob=0.2)],
    "deberta-v2": [{}, SIZES, SIZES | dict(relative_attention=True, pos_att_type="p2c|c2p", position_buckets=8,
                   share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, pooler_hidden_act="relu"),
                   SIZES | dict(relative_attention=True, pos_att_type=["c2p"], max_relative_positions=20, cls_dropout=0.3)],
    "modernbert": [{}, SIZES, SIZES | dict(global_rope_theta=900.0, local_rope_theta=50.0, local_attention=10,
                   classifier_pooling="mean", norm_bias=True, global_attn_every_n_layers=2)],
    "eurobert": [{}, SIZES, GROUPED | dict(head_dim=10, rope_parameters=LLAMA3 | dict(rope_theta=500.0), attention_bias=True,
                 mlp_bias=True, classifier_pooling="mean"), SIZES | dict(classifier_pooling="bos", rms_norm_eps=1e-6)],
    "nomic_bert": [{}, SIZES, SIZES | dict(head_dim=10, hidden_act="gelu", type_vocab_size=1, classifier_dropout=0.3,
                   hidden_dropout_prob=0.2, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=500.0))],
}
NOT_OF_THE_MODEL = ("id2label", "label2id", "num_labels", "transformers_version")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    cases = []
    for family, settings in CASES.items():
        if family not in transformers.CONFIG_MAPPING:
            continue  # version 4 has no code for some
        for given in settings:
            config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(given)))
            with tempfile.TemporaryDirectory() as directory:
                config.save_pretrained(directory)
                saved = json.loads((Path(directory) / "config.json").read_text())
            whole = {key: value for key, value in config.to_dict().items() if key not in NOT_OF_THE_MODEL}
            cases.append({"given": {"model_type": family, **given}, "whole": whole, "saved": saved})
    version = transformers.__version__
    path = OUT / f"transformers_{version.split('.')[0]}.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"version": "{version}", "cases": [\n{lines}\n]}}\n')
    print(path, len(cases), "cases")


if __name__ == "__main__":
    main()
