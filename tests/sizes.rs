//! The table of sizes in `docs/models.md` is what the estimate says; `LLMCLS_WRITE_DOCS=1 cargo test sizes` writes it.
//! `tests/fixtures/configs/sizes.json` has the shapes of known models.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use llmcls::kernels::device::Device;
use llmcls::model::config::{BackboneConfig, LayersConfig};
use llmcls::model::weights::{BaseStorage, Precision};
use llmcls::training::estimate::{MemoryEstimate, StepShape};
use serde::Deserialize;
use serde_json::Value;

const BEGIN: &str = "<!-- sizes: written by tests/sizes.rs -->\n";
const END: &str = "<!-- sizes: end -->\n";
const TOKENS: usize = 4 * 512;
const RANK: usize = 16;

#[derive(Deserialize)]
struct Known {
    name: String,
    config: Value,
    place: String,
}

/// Adapters of rank 16 in all linear layers, in GB.
fn gigabytes(config: &BackboneConfig, precision: Precision, is_4bit: bool) -> f64 {
    let (d, mlp) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let (layers, products) = match &config.layers {
        LayersConfig::PreNorm(_) => (config.num_hidden_layers, 3),
        LayersConfig::PostNorm(layers) => (layers.stored.len(), 2),
    };
    let trained = RANK * layers * (2 * (d + queries) + 2 * (d + keys) + products * (d + mlp));
    let estimate = MemoryEstimate::new(&StepShape {
        config,
        storage: BaseStorage { precision, is_4bit },
        trained,
        trains_base: false,
        accumulation: 1,
        optimizer_bytes: if is_4bit { 2 } else { 8 } * trained,
        recompute: false,
        tokens: TOKENS,
        device: &Device::cpu(),
    });
    estimate.total() as f64 / 1e9
}

#[test]
fn the_table_of_sizes_is_what_the_estimate_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known: Vec<Known> =
        serde_json::from_str(&fs::read_to_string(root.join("tests/fixtures/configs/sizes.json")).unwrap()).unwrap();
    let mut table = "| model | parameters | f32 | bf16 | 4 bits | for |\n|---|---|---|---|---|---|\n".to_owned();
    let directory = tempfile::tempdir().unwrap();
    for model in known {
        let path = directory.path().join("config.json");
        fs::write(&path, model.config.to_string()).unwrap();
        let config = BackboneConfig::from_file(&path).unwrap();
        let parameters = (config.linear_weights() + config.embedding_weights()) as f64 / 1e6;
        let cells = [(Precision::Float32, false), (Precision::Bfloat16, false), (Precision::Bfloat16, true)]
            .map(|(precision, is_4bit)| format!("{:.1}", gigabytes(&config, precision, is_4bit)));
        let [full, half, four] = cells;
        writeln!(table, "| {} | {parameters:.0} M | {full} | {half} | {four} | {} |", model.name, model.place).unwrap();
    }
    let path = root.join("docs/models.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the marker before the table");
    let (_, tail) = rest.split_once(END).expect("the marker after the table");
    let expected = format!("{head}{BEGIN}{table}{END}{tail}");
    if std::env::var_os("LLMCLS_WRITE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    assert!(
        text == expected || std::env::var_os("LLMCLS_WRITE_DOCS").is_some(),
        "docs/models.md is out of date; write it with LLMCLS_WRITE_DOCS=1 cargo test sizes"
    );
}
