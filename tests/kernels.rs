//! The declarations of CUDA kernels in Rust name the `.cu` files that the kernels are in, and have their parameters.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Names and texts of the files of an extension.
fn files(extension: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    paths
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The text from after `start` to the parenthesis that closes what `start` opens.
fn inside<'a>(text: &'a str, start: &str) -> &'a str {
    let text = &text[text.find(start).unwrap() + start.len()..];
    let mut depth = 1;
    let end = text.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        depth == 0
    });
    &text[..end.unwrap().0]
}

/// The `.cu` file of each kernel, and its parameters: name and type.
type Kernels = BTreeMap<String, (String, Vec<(String, String)>)>;

/// Kernels as declared in Rust.
fn declared() -> Kernels {
    let mut kernels = BTreeMap::new();
    for (_, text) in files("rs") {
        let Some((before, block)) = text.split_once("kernels! { CODE:\n") else { continue };
        let file = before.split_once("const CODE: Code = Code { name: \"").unwrap().1.split_once('"').unwrap().0;
        assert!(before.contains(&format!("ptx::{} }};", file.to_uppercase())), "{file}: another file's code");
        let block = block.split_once("\n}").unwrap().0;
        for declaration in block.split(';').filter(|declaration| declaration.contains("fn ")) {
            let (name, parameters) = declaration.split_once("fn ").unwrap().1.split_once('(').unwrap();
            let of_c = |r#type: &str| match r#type {
                "usize" => "size_t",
                "u32" => "uint32_t",
                "i32" | "Flag" => "int",
                "f32" => "float",
                "StreamWords" => "Stream",
                "Shape" => "Shape",
                "Address<Activations>" => "T*",
                "Address<f32>" => "float*",
                "Address<f64>" => "double*",
                "Address<u8>" => "uint8_t*",
                "Address<u32>" => "uint32_t*",
                "Address<Update>" => "Update*",
                "Address<BlockwiseUpdate>" => "BlockwiseUpdate*",
                "Address<Numbers>" => "Numbers*",
                other => panic!("{name}: `{other}` is no type of a kernel's parameter"),
            };
            let parameters = parameters.trim_end().trim_end_matches(')').split(',').map(str::trim);
            let parameters = parameters.filter(|parameter| !parameter.is_empty()).map(|parameter| {
                let (parameter, r#type) = parameter.split_once(": ").unwrap();
                (parameter.to_owned(), of_c(r#type).to_owned())
            });
            let name = name.split('<').next().unwrap();
            kernels.insert(name.to_owned(), (file.to_owned(), parameters.collect()));
        }
    }
    kernels
}

/// The same, as the `.cu` files have them.
fn defined() -> Kernels {
    let parsed = |list: &str| -> Vec<(String, String)> {
        let parameters = list.split(',').map(|parameter| {
            let (r#type, name) = parameter.trim().rsplit_once([' ', '*']).unwrap();
            let pointer = if parameter.contains('*') { "*" } else { "" };
            let r#type = r#type.replace("const ", "").replace("__grid_constant__ ", "").replace('*', "");
            // Five numbers a sequence.
            let r#type = r#type.trim().replace("Sequence", "uint32_t").replace("bf16", "T");
            (name.to_owned(), format!("{type}{pointer}"))
        });
        parameters.collect()
    };
    let mut kernels = BTreeMap::new();
    for (file, text) in files("cu") {
        let text = text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ");
        let shared = text
            .split_once("#define BACKWARD_PARAMS(T) ")
            .map_or("", |(_, rest)| rest.split_once(" #define").map_or(rest, |(list, _)| list));
        for part in text.split("#define PARAMS(T) ").skip(1) {
            let list = inside(part, "(").replace("BACKWARD_PARAMS(T)", shared);
            let name = part.split_once("KERNEL(").unwrap().1.split_once(',').unwrap().0;
            kernels.insert(name.to_owned(), (file.clone(), parsed(&list)));
        }
        for part in text.split("extern \"C\" __global__ void ").skip(1) {
            let part = match part.strip_prefix("__launch_bounds__(") {
                Some(bounded) => bounded.split_once(") ").unwrap().1,
                None => part,
            };
            let name = part.split_once('(').unwrap().0;
            // Not in the macros that declare several.
            if !name.contains('#') {
                kernels.insert(name.to_owned(), (file.clone(), parsed(inside(part, "("))));
            }
        }
    }
    kernels
}

#[test]
fn declarations_have_the_parameters_of_their_kernels() {
    let (declared, defined) = (declared(), defined());
    assert!(declared.len() > 15, "only {:?} were found", declared.keys());
    assert_eq!(declared.keys().collect::<Vec<_>>(), defined.keys().collect::<Vec<_>>());
    for (name, kernel) in declared {
        assert_eq!(kernel, defined[&name], "{name}");
    }
}
