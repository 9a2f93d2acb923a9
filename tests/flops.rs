//! A training step does the matrix products that the algorithm needs, and no more.

use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

/// Attention works on tiles of 32 queries, all of which get as many keys as the last of them sees, at most.
const TILE: usize = 32;

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
    // Two products forward and five backward over the pairs of query and key.
    let tiled: usize = (0..length).map(|query| length.min((query / TILE + 1) * TILE)).sum();
    let pairs = batch * ((layers - 1) * tiled + length);
    let attention = 7 * pairs * q;
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
    let (done, needed) = (result["flops_per_step"].as_f64().unwrap(), needed as f64);
    // The last layer's one query is multiplied with less than whole tiles.
    assert!(done <= needed && done > 0.998 * needed, "{done} of {needed}");
}
