#!/usr/bin/env python3
"""Makes the numbers of language models that tests/language.rs compares with, from transformers.

    pip install torch==2.15.0 transformers==4.57.6 safetensors
    python scripts/make_language_fixtures.py                    small random models, chat templates
    python scripts/make_language_fixtures.py --smollm2 DIR      greedy tokens of SmolLM2-135M-Instruct

For each small random decoder of tests/fixtures it writes tests/fixtures/language/<name>.safetensors (`lm_head.weight`
where the head is not tied, the prompts, their logits, and the tokens that follow each greedily) and <name>.json (what
its config.json has otherwise). chat.json has chat templates and what transformers renders with them.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
import transformers
from jinja2.exceptions import TemplateError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
OUT = FIXTURES / "language"
GREEDY = 24
MODELS = {
    "llama_tied": ("Llama", {}),
    "llama_untied": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {"final_logit_softcapping": 2.5}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"logits_scaling": 2.5}),
}


def small(name: str, family: str, changed: dict) -> None:
    torch.manual_seed(100 + len(name))
    read = json.loads((FIXTURES / name / "config.json").read_text()) | changed
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(**read)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    state = load_file(FIXTURES / name / "model.safetensors")
    state = {key if key.startswith("model.") else f"model.{key}": value for key, value in state.items()}
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight"}, found
    saved = {}
    if not config.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight.normal_(0, 0.3)
        saved["lm_head.weight"] = model.lm_head.weight.detach().clone()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == config.tie_word_embeddings
    for index, length in enumerate([23, 1, 9]):
        prompt = torch.randint(0, config.vocab_size, (1, length))
        with torch.no_grad():
            logits = model(prompt).logits[0]
            # transformers' own loop stops at ids that the small models' configurations name.
            tokens = prompt
            for _ in range(GREEDY):
                tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
        saved[f"prompt.{index}"] = prompt[0].to(torch.int32)
        saved[f"logits.{index}"] = logits.contiguous()
        saved[f"greedy.{index}"] = tokens[0, length:].to(torch.int32).clone()
    save_file(saved, OUT / f"{name}.safetensors")
    (OUT / f"{name}.json").write_text(json.dumps(changed) + "\n")
    print(name, "tied" if config.tie_word_embeddings else "untied", saved["greedy.0"].tolist()[:8])


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are "
    "a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = "26 Jul 2024" %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- the system message #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    "'<start_of_turn>model\n'}}{% endif %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
BLOCKS = """{% for message in messages %}
    {% if message['role'] == 'user' %}
Q: {{ message.content.strip() }}{% if not loop.last %}

{% endif %}
    {% else %}
{{ message.role | upper }}: {{ message | tojson }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
A:{% endif %}
"""


def chat() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "data" / "tiny-llama" / "tokenizer.json"), bos_token="<bos>", eos_token="<eos>"
    )
    one = [{"role": "user", "content": " Which labels?\n\"naïve\" <b> & 'x' \n"}]
    several = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "<think>\nhm</think>\n\n[\"a\"]"},
        {"role": "user", "content": "Second\n"},
    ]
    cases = []
    for name, template in dict(chatml=CHATML, llama3=LLAMA3, gemma=GEMMA, qwen3=QWEN3, blocks=BLOCKS).items():
        for messages in (one, several):
            case = {"name": name, "template": template, "messages": messages}
            try:
                case["text"] = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except TemplateError as error:
                case["error"] = str(error)
            cases.append(case)
    case = {"bos_token": "<bos>", "eos_token": "<eos>", "cases": cases}
    (OUT / "chat.json").write_text(json.dumps(case, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), "renderings")


def smollm2(directory: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{directory}/tokenizer.json")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with open(ROOT / "data" / "debtags" / "test.csv", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:20]
    rows = []
    for index, text in enumerate(texts):
        question = f"Describe in a few words who would use this package: {text}"
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" if index % 2 else f"{text}\n\nIt is"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=False, eos_token_id=None,
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )
        # How far the second best token is behind: a difference of rounding may turn what is close.
        two = torch.stack(out.logits)[:, 0].topk(2).values
        rows.append({
            "prompt": ids[0].tolist(),
            "greedy": out.sequences[0, ids.shape[1]:].tolist(),
            "smallest_margin": (two[:, 0] - two[:, 1]).min().item(),
        })
        print(index, rows[-1]["smallest_margin"], repr(tokenizer.decode(rows[-1]["greedy"])[:80]))
    (OUT / "smollm2_greedy.json").write_text(json.dumps(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smollm2", metavar="DIR")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if args.smollm2:
        return smollm2(args.smollm2)
    for name, (family, changed) in MODELS.items():
        small(name, family, changed)
    chat()


if __name__ == "__main__":
    main()
