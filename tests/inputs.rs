//! Bad input in bulk: whatever the bytes, an error and never a panic, a hang or unbounded memory.

use proptest::prelude::*;

use crate::readers::{KINDS, chosen, example, read};

/// Damage to a valid file.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
    Remove(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..8),
        proptest::sample::select(vec![
            "-1",
            "1e999",
            "99999999999999999999",
            "null",
            "NaN",
            "\u{feff}",
            "\"",
            "{",
            "[",
            "..",
            "/"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop_oneof![
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<usize>(), piece).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (any::<usize>(), 1..200usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
        (any::<usize>(), 1..200usize).prop_map(|(at, len)| Damage::Remove(at, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let place = |at: usize| at % (bytes.len() + 1);
    match damage {
        Damage::Cut(at) => bytes.truncate(place(*at)),
        Damage::Set(at, byte) => {
            let at = place(*at);
            if let Some(found) = bytes.get_mut(at) {
                *found = *byte;
            }
        }
        Damage::Insert(at, piece) => drop(bytes.splice(place(*at)..place(*at), piece.iter().copied())),
        Damage::Repeat(at, len) => {
            let start = place(*at);
            let piece = bytes[start..(start + len).min(bytes.len())].to_vec();
            drop(bytes.splice(start..start, piece));
        }
        Damage::Remove(at, len) => {
            let start = place(*at);
            drop(bytes.drain(start..(start + len).min(bytes.len())));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_give_errors(kind in proptest::sample::select(KINDS.to_vec()), damages in proptest::collection::vec(damage(), 1..6)) {
        let mut bytes = example(kind);
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        let directory = tempfile::tempdir().unwrap();
        // proptest catches panics only with its feature `std`, which would have cargo build half of the
        // dependencies once for the tests and once more for the program.
        let result = std::panic::catch_unwind(|| read(kind, &bytes, directory.path()));
        prop_assert!(result.is_ok(), "{kind}: a panic");
        if let Ok(Err(error)) = result {
            // The place is named: a path, or the key of a configuration.
            let text = format!("{error:#}");
            prop_assert!(text.contains(kind) || text.contains("problem") || text.contains(directory.path().to_str().unwrap()), "{text}");
        }
    }
}

/// Also writes the seeds, where `scripts/fuzz` asks for them.
#[test]
fn seeds_of_the_fuzzer_reach_their_own_readers() {
    /// The limit of inputs in `scripts/fuzz`.
    const LONGEST: usize = 8192;
    let corpus = std::env::var_os("LLMCLS_FUZZ_SEEDS").map(std::path::PathBuf::from);
    for (place, kind) in (0u8..).zip(KINDS) {
        let seed = [&[place][..], &example(kind)].concat();
        let (reader, bytes) = chosen(&seed).unwrap();
        assert_eq!((reader, bytes), (kind, &*example(kind)));
        if let Some(corpus) = &corpus {
            std::fs::write(corpus.join(format!("seed-{kind}")), &seed[..seed.len().min(LONGEST)]).unwrap();
        }
    }
    // Files of other programs, beside one's own.
    for entry in std::fs::read_dir("tests/fixtures/rows").unwrap() {
        let path = entry.unwrap().path();
        let kind = format!("rows.{}", path.extension().unwrap().to_str().unwrap());
        let place = KINDS.iter().position(|&name| name == kind).unwrap();
        let seed = [&[place as u8][..], &std::fs::read(&path).unwrap()].concat();
        assert_eq!(chosen(&seed).unwrap().0, kind);
        if let Some(corpus) = &corpus {
            std::fs::write(corpus.join(path.file_name().unwrap()), &seed[..seed.len().min(LONGEST)]).unwrap();
        }
    }
}

#[test]
fn valid_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let result = read(kind, &example(kind), directory.path());
        match kind {
            // Its tensors are not all of the shape that is asked for, and its file is not there.
            "adapter_model.safetensors" | "manifest.json" => {}
            _ => result.unwrap(),
        }
    }
}

#[test]
fn nesting_lying_sizes_and_long_fields_are_survived() {
    let directory = tempfile::tempdir().unwrap();
    let deep = "[".repeat(200_000);
    for kind in KINDS {
        assert!(read(kind, deep.as_bytes(), directory.path()).is_err(), "{kind}");
        assert!(read(kind, format!("{{\"a\": {deep}").as_bytes(), directory.path()).is_err(), "{kind}");
        assert!(read(kind, b"", directory.path()).is_err(), "{kind}");
    }
    let mut lying = u64::MAX.to_le_bytes().to_vec();
    lying.extend(b"{}");
    assert!(read("adapter_model.safetensors", &lying, directory.path()).is_err());
    for index in [r#"{"weight_map": {"x": "../a.safetensors"}}"#, r#"{"weight_map": {"x": "/etc/passwd"}}"#] {
        let error = read("model.safetensors.index.json", index.as_bytes(), directory.path()).unwrap_err();
        assert!(format!("{error:#}").contains("not a plain path inside the repository"), "{error:#}");
    }
    let config = String::from_utf8(example("config.json")).unwrap();
    for (key, value) in
        [("vocab_size", "1e18"), ("hidden_size", "18446744073709551615"), ("num_hidden_layers", "4294967296")]
    {
        let start = config.find(key).unwrap();
        let end = start + config[start..].find([',', '\n']).unwrap();
        let huge = format!("{}{key}\": {value}{}", &config[..start], &config[end..]);
        assert!(read("config.json", huge.as_bytes(), directory.path()).is_err(), "{key}");
    }
    let long = format!("uid,text,interface_daemon\n1,{},0\n", "x".repeat(100_000_000));
    read("rows.csv", long.as_bytes(), directory.path()).unwrap();
}
