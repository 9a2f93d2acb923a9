//! The declarations of CUDA kernels in Rust have the parameters of the kernels in the `.cu` files.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

fn files(extension: &str) -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    paths.map(|path| fs::read_to_string(path).unwrap()).collect()
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

/// Name and type of each kernel's parameters as declared in Rust, by the kernel's name.
fn declared() -> BTreeMap<String, Vec<(String, String)>> {
    let mut kernels = BTreeMap::new();
    for text in files("rs") {
        let Some((_, block)) = text.split_once("kernels! { CODE:\n") else { continue };
        let block = block.split_once("\n}").unwrap().0;
        for declaration in block.split(';').filter(|declaration| declaration.contains("fn ")) {
            let (name, parameters) = declaration.split_once("fn ").unwrap().1.split_once('(').unwrap();
            let of_c = |r#type: &str| match r#type {
                "usize" => "size_t",
                "u32" => "uint32_t",
                "i32" | "Flag" => "int",
                "f32" => "float",
                "StreamWords" => "Stream",
                "StepNumbers" => "Step",
                "Shape" => "Shape",
                "Address<Activations>" => "T*",
                "Address<f32>" => "float*",
                "Address<f64>" => "double*",
                "Address<u8>" => "uint8_t*",
                "Address<u32>" => "uint32_t*",
                other => panic!("{name}: `{other}` is no type of a kernel's parameter"),
            };
            let parameters = parameters.trim_end().trim_end_matches(')').split(',').map(str::trim);
            let parameters = parameters.filter(|parameter| !parameter.is_empty()).map(|parameter| {
                let (parameter, r#type) = parameter.split_once(": ").unwrap();
                (parameter.to_owned(), of_c(r#type).to_owned())
            });
            kernels.insert(name.trim_end_matches("<T>").to_owned(), parameters.collect());
        }
    }
    kernels
}

/// The same, as the `.cu` files have them.
fn defined() -> BTreeMap<String, Vec<(String, String)>> {
    let parsed = |list: &str| -> Vec<(String, String)> {
        let parameters = list.split(',').map(|parameter| {
            let (r#type, name) = parameter.trim().rsplit_once([' ', '*']).unwrap();
            let pointer = if parameter.contains('*') { "*" } else { "" };
            let r#type = r#type.replace("const ", "").replace('*', "");
            // Five numbers a sequence.
            let r#type = r#type.trim().replace("Sequence", "uint32_t");
            (name.to_owned(), format!("{type}{pointer}"))
        });
        parameters.collect()
    };
    let mut kernels = BTreeMap::new();
    for text in files("cu") {
        let text = text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ");
        let shared = text
            .split_once("#define BACKWARD_PARAMS(T) ")
            .map_or("", |(_, rest)| rest.split_once(" #define").map_or(rest, |(list, _)| list));
        for part in text.split("#define PARAMS(T) ").skip(1) {
            let list = inside(part, "(").replace("BACKWARD_PARAMS(T)", shared);
            let name = part.split_once("KERNEL(").unwrap().1.split_once(',').unwrap().0;
            kernels.insert(name.to_owned(), parsed(&list));
        }
        for part in text.split("extern \"C\" __global__ void ").skip(1) {
            let name = part.split_once('(').unwrap().0;
            kernels.insert(name.to_owned(), parsed(inside(part, "(")));
        }
    }
    kernels
}

#[test]
fn declarations_have_the_parameters_of_their_kernels() {
    let (declared, defined) = (declared(), defined());
    assert!(declared.len() > 15, "only {:?} were found", declared.keys());
    assert_eq!(declared.keys().collect::<Vec<_>>(), defined.keys().collect::<Vec<_>>());
    for (name, parameters) in declared {
        assert_eq!(parameters, defined[&name], "{name}");
    }
}
