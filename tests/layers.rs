//! The table of layers in `src/lib.rs`, held: a module imports from lower layers only.

use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: &[(&str, u8)] = &[
    ("commands", 7),
    ("cli", 7),
    ("experiment", 6),
    ("training", 5),
    ("artifacts", 4),
    ("evaluation", 4),
    ("model", 3),
    ("baseline", 2),
    ("data", 2),
    ("hub", 2),
    ("metrics", 2),
    ("thresholds", 2),
    ("ops", 1),
    ("kernels", 1),
    ("config", 1),
    ("console", 1),
    ("rng", 0),
    ("device", 0),
    ("atomic_file", 0),
    ("failpoint", 0),
    ("interrupt", 0),
];

fn layer(module: &str) -> u8 {
    LAYERS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("`{module}` has no layer")).1
}

fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn modules_import_from_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut imports = 0;
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let own = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if own == "lib" || own == "main" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("use crate::")) {
            let module = line.split([':', ';', '{']).next().unwrap();
            let same_layer_is_fine = ["cli", "failpoint", "metrics", "kernels", "ops"].contains(&module);
            // What is under test may look at anything.
            if own == module {
                continue;
            }
            imports += 1;
            let below = layer(module) < layer(&own) || same_layer_is_fine && layer(module) == layer(&own);
            // Records are written of evaluations, both in layer 4; the reverse must not be.
            let is_record = own == "artifacts" && module == "evaluation";
            assert!(below || is_record, "{}: imports `{module}` from layer {}", inside.display(), layer(module));
        }
    }
    assert!(imports > 50, "only {imports} imports were found");
}
