//! The tokenizer classes of transformers that the supported families use, and what each does with a loaded
//! `tokenizer.json`.

/// A fast tokenizer class of transformers 4.57; classes whose constructors do the same are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `PreTrainedTokenizerFast`, in transformers 5 `TokenizersBackend`.
    Plain,
    Llama,
    Gemma,
    Gpt2,
    GptNeoX,
    Qwen2,
    Bert,
    Roberta,
    XlmRoberta,
    MpNet,
    Albert,
    DebertaV2,
}

/// The special tokens that have a name of their own, in the order in which transformers adds them.
pub(super) const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Class {
    /// The class that `tokenizer_class` names, with or without `Fast`; none if it is not known here.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name.strip_suffix("Fast").unwrap_or(name) {
            "PreTrainedTokenizer" | "TokenizersBackend" => Self::Plain,
            "LlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "Qwen2Tokenizer" => Self::Qwen2,
            "BertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "MobileBertTokenizer"
            | "ConvBertTokenizer"
            | "SqueezeBertTokenizer" => Self::Bert,
            "RobertaTokenizer" | "LongformerTokenizer" | "BartTokenizer" => Self::Roberta,
            "XLMRobertaTokenizer" => Self::XlmRoberta,
            "MPNetTokenizer" => Self::MpNet,
            "AlbertTokenizer" => Self::Albert,
            "DebertaV2Tokenizer" => Self::DebertaV2,
            _ => return None,
        })
    }

    /// The class that transformers takes for a `model_type` where no file names one.
    pub(super) fn of_model_type(model_type: &str) -> Option<&'static str> {
        Some(match model_type {
            "llama" | "mistral" | "phi3" => "LlamaTokenizerFast",
            "gemma" | "gemma2" | "gemma3_text" => "GemmaTokenizerFast",
            "qwen2" | "qwen3" => "Qwen2TokenizerFast",
            "bert" | "nomic_bert" => "BertTokenizerFast",
            "distilbert" => "DistilBertTokenizerFast",
            "roberta" => "RobertaTokenizerFast",
            "xlm-roberta" => "XLMRobertaTokenizerFast",
            "electra" => "ElectraTokenizerFast",
            "albert" => "AlbertTokenizerFast",
            "mpnet" => "MPNetTokenizerFast",
            "deberta-v2" => "DebertaV2TokenizerFast",
            "olmo2" => "GPTNeoXTokenizerFast",
            "granite" => "GPT2TokenizerFast",
            "modernbert" | "smollm3" | "eurobert" => "PreTrainedTokenizerFast",
            _ => return None,
        })
    }

    /// The special tokens of the constructor's defaults.
    pub(super) fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::Plain => &[],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Gemma => {
                &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]
            }
            Self::Gpt2 | Self::GptNeoX => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Self::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::MpNet => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "[UNK]"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Self::Albert => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "<unk>"),
                ("sep_token", "[SEP]"),
                ("pad_token", "<pad>"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::DebertaV2 => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Roberta | Self::XlmRoberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
        }
    }

    /// The default of `add_bos_token`, for classes that rebuild the post-processor from it and from `add_eos_token`;
    /// `None` for the others.
    pub(super) fn adds_bos_by_default(self) -> Option<bool> {
        match self {
            Self::Llama | Self::Gemma => Some(true),
            Self::GptNeoX => Some(false),
            _ => None,
        }
    }

    /// Names of the inputs that the class passes to a model.
    pub(super) fn model_inputs(self, name: &str) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Albert | Self::DebertaV2 => &["input_ids", "token_type_ids", "attention_mask"],
            Self::Bert if !name.starts_with("DistilBert") => &["input_ids", "token_type_ids", "attention_mask"],
            _ => &["input_ids", "attention_mask"],
        }
    }

    /// The side on which the class pads.
    pub(super) fn padding_side(self) -> &'static str {
        match self {
            Self::Llama | Self::Gemma => "left",
            _ => "right",
        }
    }
}
