//! A training step does the matrix products that the algorithm needs, and no more.

use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

/// Queries that attention multiplies at once with the keys that the last of them sees.
const PANEL: usize = 12;
/// Queries whose gradients of keys and values are summed at once.
const TILE: usize = 72;

/// Pairs of query and key in products of `count` queries from position `first` on, in equal parts of at most `most`.
fn pairs(first: usize, count: usize, most: usize) -> usize {
    parts(count, most).map(|(start, end)| (end - start) * (first + end)).sum()
}

fn parts(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let number = count.div_ceil(most);
    (0..number).map(move |part| (part * count / number, (part + 1) * count / number))
}

#[test]
fn a_training_step_does_no_more_products_than_the_algorithm_needs() {
    let config: Value = serde_json::from_str(
        &std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama/config.json")).unwrap(),
    )
    .unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (d, mlp, layers) = (size("hidden_size"), size("intermediate_size"), size("num_hidden_layers"));
    let heads = size("num_attention_heads");
    let head = config["head_dim"].as_u64().map_or(d / heads, |dim| dim as usize);
    let (q, kv) = (heads * head, size("num_key_value_heads") * head);
    let (batch, length, labels) = (3, 70, 5);
    let tokens = batch * length;

    let per_layer = 2 * d * q + 2 * d * kv + 3 * d * mlp;
    let keys_and_values = 2 * d * kv;
    // Forward: every layer over all tokens, but of the last one only keys and values.
    let forward = tokens * ((layers - 1) * per_layer + keys_and_values) + batch * (per_layer - keys_and_values);
    // Backward: the same products for the inputs' gradients, but the first layer's q, k and v end
    // there: nothing before them is trained.
    let backward = forward - tokens * (d * q + keys_and_values);
    let score = 3 * batch * labels * d;
    // Two products forward and three backward by panels, those within tiles, and two backward by tiles; of the last
    // layer, seven of one query.
    let backward_panels: usize = parts(length, TILE).map(|(start, end)| pairs(start, end - start, PANEL)).sum();
    let whole = 2 * pairs(0, length, PANEL) + 3 * backward_panels + 2 * pairs(0, length, TILE);
    let attention = batch * ((layers - 1) * whole + 7 * length) * q;
    let needed = 2 * (forward + backward + score + attention);

    let output = Command::cargo_bin("llmcls")
        .unwrap()
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["bench", "--quiet", "--device", "cpu", "--config", "configs/tiny.yaml", "--steps", "2", "--warmup", "0"])
        .args(["--batch_size", &batch.to_string(), "--length", &length.to_string(), "--labels", &labels.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["flops_per_step"].as_f64().unwrap(), needed as f64);
}
