//! Names that a family's checkpoints have, and transformers changes while it reads them: NomicBERT's are those of the
//! code on the Hub, where q, k and v are one tensor. transformers 5 writes them so, too.

use std::collections::BTreeMap;

use super::tensor_in_file::TensorInFile;

/// The norm of the embeddings, which tells these names from others.
const SIGN: &str = "emb_ln.weight";
const FUSED: &str = "attn.Wqkv.weight";
/// Parts of names, and what they are today.
const PARTS: [(&str, &str); 8] = [
    ("encoder.layers.", "layers."),
    ("emb_ln.", "embeddings.LayerNorm."),
    ("attn.out_proj.", "self_attn.o_proj."),
    ("mlp.fc11.", "mlp.up_proj."),
    ("mlp.fc12.", "mlp.gate_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
    ("norm1.", "post_attention_layernorm."),
    ("norm2.", "post_mlp_layernorm."),
];

/// Gives tensors the names of today, if they have former ones.
pub(super) fn replace(tensors: &mut BTreeMap<String, TensorInFile>) {
    if !tensors.keys().any(|name| name.ends_with(SIGN)) {
        return;
    }
    for (name, tensor) in std::mem::take(tensors) {
        // A masked language model's.
        let mut today = name.strip_prefix("bert.").unwrap_or(&name).to_owned();
        for (former, part) in PARTS {
            today = today.replace(former, part);
        }
        match today.strip_suffix(FUSED).map(|layer| (layer, thirds(&tensor))) {
            Some((layer, Some(thirds))) => {
                let names = ["q_proj", "k_proj", "v_proj"].map(|module| format!("{layer}self_attn.{module}.weight"));
                tensors.extend(names.into_iter().zip(thirds));
            }
            _ => drop(tensors.insert(today, tensor)),
        }
    }
}

/// The upper, middle and lower rows of a matrix, where they are in the file; none if they cannot be told apart.
fn thirds(tensor: &TensorInFile) -> Option<[TensorInFile; 3]> {
    let [rows, columns] = tensor.shape[..] else { return None };
    let whole = tensor.bytes.len();
    if !tensor.is_plain() || rows % 3 != 0 {
        return None;
    }
    let third = |index: usize| TensorInFile {
        file: tensor.file.clone(),
        path: tensor.path.clone(),
        dtype: tensor.dtype,
        shape: vec![rows / 3, columns],
        bytes: tensor.bytes.start + index * whole / 3..tensor.bytes.start + (index + 1) * whole / 3,
        blocks: None,
    };
    Some([third(0), third(1), third(2)])
}
