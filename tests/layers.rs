//! The table of layers in `src/lib.rs`, held: a module imports from lower layers only, and no files import
//! from each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: &[(&str, u8)] = &[
    ("commands", 10),
    ("cli", 10),
    ("server", 9),
    ("predictor", 8),
    ("experiment", 7),
    ("zeroshot", 6),
    ("training", 6),
    ("run", 5),
    ("crew", 6),
    ("evaluation", 5),
    ("model", 4),
    ("baseline", 3),
    ("data", 3),
    ("hub", 3),
    ("metrics", 3),
    ("thresholds", 3),
    ("ops", 2),
    ("gguf", 2),
    ("cluster", 2),
    ("kernels", 1),
    ("config", 1),
    ("console", 1),
    ("partial_output", 1),
    ("rng", 0),
    ("device", 0),
    ("atomic_file", 0),
    ("embedded", 0),
    ("failpoint", 0),
    ("file_identity", 0),
    ("interrupt", 0),
    ("library_panic", 0),
    ("exit", 0),
    ("secret", 0),
];

fn layer(module: &str) -> u8 {
    LAYERS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("`{module}` has no layer")).1
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
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

/// Every source file by its module path, such as `["ops", "tape"]`; tests at its foot are cut off.
fn modules() -> BTreeMap<Vec<String>, (String, String)> {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let read = |file: PathBuf| {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
        (module, (name, text))
    };
    files.into_iter().map(read).filter(|(_, (name, _))| !name.ends_with("tests.rs")).collect()
}

/// All paths of a file's code that begin with `crate::` or `super::`, from `crate` on.
fn paths(text: &str, module: &[String], is_folder: bool) -> Vec<Vec<String>> {
    // What may see an item is no import of it.
    let text = text.replace("pub(in crate::", "pub(in ");
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let parent = if is_folder { module } else { &module[..module.len() - 1] };
    let mut found = Vec::new();
    for (start, prefix) in ["crate::", "super::", "self::"]
        .iter()
        .flat_map(|prefix| code.match_indices(prefix).map(move |(at, _)| (at, *prefix)))
    {
        let before = code[..start].chars().next_back();
        if before.is_some_and(|before| before == ':' || before.is_alphanumeric() || before == '_') {
            continue;
        }
        let base = match prefix {
            "crate::" => Vec::new(),
            // Of a module inside the file, it is the file.
            "super::" if is_inside_a_module(&code[..start]) => module.to_vec(),
            "super::" if is_folder => module[..module.len() - 1].to_vec(),
            "super::" => parent.to_vec(),
            _ => module.to_vec(),
        };
        expand(&code[start + prefix.len()..], base, &mut found);
    }
    found
}

/// Returns true if code that begins like this continues inside a `mod name { … }`.
fn is_inside_a_module(code: &str) -> bool {
    let mut is_module = Vec::new();
    for (at, c) in code.char_indices() {
        if c == '{' {
            let mut words = code[..at].split_whitespace().rev();
            is_module.push(words.next().is_some() && words.next() == Some("mod"));
        } else if c == '}' {
            is_module.pop();
        }
    }
    is_module.contains(&true)
}

/// Reads `a::{b, c::d}` after `base`; returns what is left of the text.
fn expand<'a>(text: &'a str, base: Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.is_empty() && !rest.starts_with('}') {
            let before = rest.len();
            rest = expand(rest, base.clone(), found).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            if rest.len() == before {
                break;
            }
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut path = base;
    if text[..end] == *"super" {
        path.pop();
    } else if end > 0 && &text[..end] != "self" {
        path.push(text[..end].to_owned());
    }
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, path, found),
        None => {
            found.push(path);
            &text[end..]
        }
    }
}

/// For each file the files that it imports from.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules();
    let mut imports = BTreeMap::new();
    for (module, (name, text)) in &modules {
        let is_folder = name.ends_with("mod.rs");
        let mut targets = BTreeSet::new();
        if !["lib.rs", "main.rs"].contains(&name.as_str()) {
            for path in paths(text, module, is_folder) {
                let target = (1..=path.len()).rev().find_map(|count| modules.get(&path[..count]));
                targets.extend(target.map(|(file, _)| file.clone()).filter(|file| file != name));
            }
            // A folder's module reads its own children by their bare names.
            for child in modules.keys().filter(|child| is_folder && child[..child.len() - 1] == module[..]) {
                let own = child.last().unwrap();
                let uses = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let calls = format!("{own}::");
                if uses.flat_map(|line| line.match_indices(&calls).map(move |(at, _)| (line, at))).any(|(line, at)| {
                    !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
                }) {
                    targets.insert(modules[child].0.clone());
                }
            }
        }
        imports.insert(name.clone(), targets);
    }
    imports
}

#[test]
fn modules_import_from_lower_layers_only() {
    let mut count = 0;
    let own_module = |file: &str| file.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
    for (file, targets) in imports() {
        for target in targets {
            let (own, module) = (own_module(&file), own_module(&target));
            if own == module {
                continue;
            }
            count += 1;
            let same_layer_is_fine = ["cli", "exit", "failpoint", "metrics"].contains(&module.as_str());
            let below = layer(&module) < layer(&own) || same_layer_is_fine && layer(&module) == layer(&own);
            // Records are written of evaluations, both in one layer; the reverse must not be.
            let is_record = own == "run" && module == "evaluation";
            assert!(below || is_record, "{file}: imports `{target}` from layer {}", layer(&module));
        }
    }
    assert!(count > 50, "only {count} imports were found");
}

#[test]
fn no_files_import_from_each_other_in_a_circle() {
    let imports = imports();
    let reachable = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = imports[from].iter().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&imports[file]);
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> = imports.keys().map(|file| (file, reachable(file))).collect();
    let circle = |file: &String| -> Vec<&str> {
        imports
            .keys()
            .filter(|other| reached[file].contains(other) && reached[*other].contains(file))
            .map(String::as_str)
            .collect()
    };
    let found: BTreeSet<Vec<&str>> = imports.keys().map(circle).filter(|files| !files.is_empty()).collect();
    assert_eq!(found, BTreeSet::new(), "circles of files");
}

#[test]
fn only_kernels_know_which_devices_there_are() {
    for (file, text) in modules().into_values() {
        let asks = |line: &str| line.contains("is_cuda") || line.contains("feature = \"cuda\"");
        if !file.starts_with("kernels/") && text.lines().any(asks) {
            panic!("{file}: asks for CUDA; kernels/device.rs and kernels/mod.rs answer such questions");
        }
    }
}
