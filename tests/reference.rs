//! `docs/configuration.md` and `docs/config.schema.json` say what `src/config/` declares.
//! `LLMCLS_WRITE_DOCS=1 cargo test reference` writes them again.

use std::fs;
use std::path::{Path, PathBuf};

use llmcls::config::reference;

const BEGIN: &str = "<!-- keys: written from src/config by tests/reference.rs -->\n";
const END: &str = "<!-- keys: end -->\n";

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

fn assert_is(path: &Path, expected: &str) {
    if std::env::var_os("LLMCLS_WRITE_DOCS").is_some() {
        fs::write(path, expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap();
    assert!(
        found == expected,
        "{} is out of date; write it with LLMCLS_WRITE_DOCS=1 cargo test reference",
        path.display()
    );
}

#[test]
fn the_configuration_reference_lists_the_declared_keys() {
    let path = docs("configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the marker before the keys");
    let (_, tail) = rest.split_once(END).expect("the marker after the keys");
    assert_is(&path, &format!("{head}{BEGIN}\n{}\n{END}{tail}", reference::markdown()));
}

#[test]
fn the_json_schema_is_that_of_the_declared_keys() {
    let schema = serde_json::to_string_pretty(&reference::json_schema()).unwrap();
    assert_is(&docs("config.schema.json"), &format!("{schema}\n"));
}

#[test]
fn shipped_configurations_name_the_schema_by_a_path_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut found = 0;
    for directory in ["", "data", "model", "bench"] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let schema = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=");
            let schema =
                schema.unwrap_or_else(|| panic!("{}: the first line does not name the schema", path.display()));
            let target = path.parent().unwrap().join(schema);
            assert!(target.is_file(), "{}: {schema} is not there", path.display());
            found += 1;
        }
    }
    assert!(found > 10, "only {found} configurations were found");
}
