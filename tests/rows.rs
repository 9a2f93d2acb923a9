//! Rows as pandas, pyarrow and Python's own libraries write and read them, and files that are no such rows.

use std::fs;
use std::path::Path;

use llmcls::data::formats::{Cell, Quoting, Rows};
use llmcls::data::table::{Columns, read_examples};
use serde_json::{Value as Json, json};

/// A cell as `expected.json` has it: null for what is missing.
fn plain(cell: Cell<'_>) -> Json {
    match cell {
        Cell::Missing | Cell::Null => Json::Null,
        Cell::List(items) => items.iter().map(|item| plain(item.cell())).collect(),
        Cell::Object(text) => json!(text),
        other => json!(other.to_text().unwrap()),
    }
}

fn read(path: &Path, quoting: Quoting) -> anyhow::Result<(Vec<String>, Vec<Vec<Json>>, Vec<String>)> {
    let mut rows = Rows::open(path, quoting)?;
    let (columns, mut cells, mut locations) = (rows.columns().to_vec(), Vec::new(), Vec::new());
    while rows.advance()? {
        cells.push((0..columns.len()).map(|column| rows.cell(column).map(plain)).collect::<Result<_, _>>()?);
        locations.push(rows.location().rsplit_once(':').unwrap().1.to_owned());
    }
    Ok((columns, cells, locations))
}

#[test]
fn files_are_read_as_their_writers_read_them() {
    let directory = Path::new("tests/fixtures/rows");
    let expected: Json = serde_json::from_slice(&fs::read(directory.join("expected.json")).unwrap()).unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let quoting = if name == "unquoted.csv" { Quoting::None } else { Quoting::Standard };
        let (columns, cells, _) = read(&directory.join(name), quoting).unwrap();
        assert_eq!(json!(columns), expected["columns"], "{name}");
        // Numbers in lists are text here.
        let expected: Json = serde_json::from_str(&expected["rows"].to_string().replace(",1,", ",\"1\",")).unwrap();
        assert_eq!(json!(cells), expected, "{name}");
    }
}

#[test]
fn kinds_of_parquet_columns_that_are_no_text_are_refused_by_name() {
    let path = Path::new("tests/fixtures/rows/odd.parquet");
    for (column, what) in
        [("raw", "bytes that are not UTF-8"), ("nested", "an object"), ("map", "an object"), ("clock", "a time of day")]
    {
        let columns = Columns { text: column.into(), ..Columns::default() };
        let error = format!("{:#}", read_examples(path, &columns, None).unwrap_err());
        assert!(error.contains(&format!("odd.parquet:1: column `{column}` holds {what}")), "{error}");
    }
    // As pandas prints them.
    for (column, text) in [("text", "a"), ("day", "2026-01-02"), ("time", "2026-01-02 03:00:05")] {
        let columns = Columns { text: column.into(), ..Columns::default() };
        assert_eq!(read_examples(path, &columns, None).unwrap().examples[0].text, text);
    }
}

/// The error of a file with these bytes.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    match read(&path, Quoting::Standard) {
        Ok(read) => panic!("{name} is read: {read:?}"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn quotes_that_swallow_rows_name_the_line_where_they_open() {
    for separator in [",", "\t", ";"] {
        for end in ["\n", "\r\n", "\r"] {
            let file = |lines: &[&str]| lines.join(end).replace('|', separator);
            let open = file(&["id|text", "1|a", "2|\"open", "3|c", "4|d", ""]);
            let joined = file(&["id|text|a", "1|\"x", "y\"|0", "", "2|\"bad|1", "3|\"good\"|0", "4|z|1", ""]);
            let inside = file(&["id|text", "1|\"a\" b", "2|c", ""]);
            let padded = file(&["id|text|a", "1|\"a\" |0", ""]);
            for (text, line) in [(open, 3), (joined, 5), (inside, 2), (padded, 2)] {
                let error = refusal("t.csv", text.as_bytes());
                assert!(error.contains(&format!("t.csv:{line}: ")), "{text:?}: {error}");
                assert!(error.contains("data.quoting=none"), "{error}");
            }
        }
    }
    let error = refusal("t.csv", b"id,text\n1,\"say \\\"hi\\\" now\"\n");
    assert!(error.contains("t.csv:2") && error.contains("backslash"), "{error}");
    assert!(refusal("t.csv", b"id,\"text\n1,a\n").contains("t.csv:1: "));
}

#[test]
fn quotes_are_checked_wherever_a_buffer_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
    // Cells of every length around the sizes of the buffers.
    for length in (65_500..65_560).chain(131_000..131_100).step_by(1) {
        let text = format!("id,text\r\n1,\"{}\"\"\n\"\"\"\r\n2,\"b\"\r\n3,\"open\r\n", "x".repeat(length));
        fs::write(&path, &text).unwrap();
        let error = format!("{:#}", read(&path, Quoting::Standard).unwrap_err());
        assert!(error.contains("t.csv:5: the quote"), "{length}: {error}");
        fs::write(&path, text.replace("open", "closed\"")).unwrap();
        let (_, cells, locations) = read(&path, Quoting::Standard).unwrap();
        assert_eq!(cells[0][1].as_str().unwrap().len(), length + 3);
        assert_eq!(locations, ["2", "4", "5"], "{length}");
    }
}

#[test]
fn lines_are_those_of_an_editor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
    for end in ["\n", "\r\n", "\r"] {
        let text = ["\u{feff}", "id,text", "", "1,\"a", "b\"", "", "", "2,c", "3,5\" disk", ""].join(end);
        fs::write(&path, &text).unwrap();
        let (columns, cells, locations) = read(&path, Quoting::Standard).unwrap();
        assert_eq!(columns, ["id", "text"], "{text:?}");
        assert_eq!(locations, ["4", "8", "9"], "{text:?}");
        assert_eq!(cells[2][1], "5\" disk");
    }
    fs::write(directory.path().join("t.jsonl"), "\u{feff}\n{\"a\": 1}\r\n\n{\n\"a\": 2\n}\n{\"a\": 3}").unwrap();
    let (_, cells, locations) = read(&directory.path().join("t.jsonl"), Quoting::Standard).unwrap();
    assert_eq!((locations, json!(cells)), (vec!["2".into(), "4".into(), "7".into()], json!([["1"], ["2"], ["3"]])));
}

#[test]
fn columns_without_a_name_at_the_end_are_left_out_while_they_are_empty() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
    fs::write(&path, "id,text,,\r\n1,a,,\r\n2,b, ,\r\n").unwrap();
    let (columns, cells, _) = read(&path, Quoting::Standard).unwrap();
    assert_eq!((columns, cells.len()), (vec!["id".to_owned(), "text".to_owned()], 2));
    let error = refusal("t.csv", b"id,text,,\n1,a,,\n2,b,,lost\n");
    assert!(error.contains("t.csv:3: column 4 has no name") && error.contains("`lost`"), "{error}");
    assert!(refusal("t.csv", b",,text\n1,2,a\n").contains("two columns have no name"));
    assert!(refusal("t.csv", b"a,b,a\n").contains("two columns are called `a`"));
    // Excel's own way to name the separator.
    fs::write(&path, "sep=|\r\nid|text\r\n1|a,b\r\n").unwrap();
    assert_eq!(json!(read(&path, Quoting::Standard).unwrap().1), json!([["1", "a,b"]]));
}

#[test]
fn other_formats_are_named_with_a_way_out() {
    let wide = |text: &str, big: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let csv = "id,text\n1,größer\n";
    let utf32: Vec<u8> = csv.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    let latin = |text: &str| text.chars().map(|c| u32::from(c) as u8).collect::<Vec<u8>>();
    let workbook =
        [&b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0"[..], &[7; 12], b"\x13\0\x08\x02[Content_Types].xml"].concat();
    let parquet = fs::read("tests/fixtures/rows/none.parquet").unwrap();
    for (name, bytes, parts) in [
        ("t.csv", wide(&format!("\u{feff}{csv}"), false), &["UTF-16", "UTF-8"][..]),
        ("t.csv", wide(&format!("\u{feff}{csv}"), true), &["UTF-16"]),
        ("t.csv", wide(csv, false), &["UTF-16"]),
        ("t.jsonl", wide("{\"text\": \"a\"}\n", true), &["UTF-16"]),
        ("t.csv", utf32, &["UTF-32"]),
        ("t.csv", latin("id,größe\n1,a\n"), &["t.csv:1", "column 2", "Latin-1", "UTF-8"]),
        ("t.csv", latin("id,text\n1,a\n2,größer\n"), &["t.csv:3", "`text`", "Latin-1"]),
        ("t.jsonl", latin("{\"text\": \"a\"}\n{\"text\": \"größer\"}\n"), &["t.jsonl:2", "Latin-1", "UTF-8"]),
        ("t.csv", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc".to_vec(), &["gzip"]),
        ("t.jsonl", b"\x28\xb5\x2f\xfd\x04\x58".to_vec(), &["zstd"]),
        ("t.csv", b"BZh91AY&SY\x01\x02".to_vec(), &["bzip2"]),
        ("t.csv", b"\xfd7zXZ\0\0".to_vec(), &["xz"]),
        ("t.csv", workbook, &["Excel workbook (.xlsx", "CSV UTF-8"]),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0".to_vec(), &["Excel workbook (.xls)"]),
        ("t.csv", b"%PDF-1.7\n".to_vec(), &["PDF"]),
        ("t.csv", parquet.clone(), &["Parquet", ".parquet"]),
        ("t.json", parquet, &["Parquet", ".parquet"]),
        ("t.csv", b"[{\"text\": \"a\"}]".to_vec(), &["JSON", ".json"]),
        ("t.tsv", b" {\"text\": \"a\"}\n".to_vec(), &["JSON", ".jsonl"]),
        ("t.jsonl", b"id,text\n1,a\n".to_vec(), &["not JSON", ".csv"]),
        ("t.parquet", b"id,text\n1,a\n".to_vec(), &["t.parquet: not a Parquet file"]),
        ("t.csv", b"<!DOCTYPE html><html>".to_vec(), &["HTML"]),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["Git LFS"]),
        ("t.csv", b"\xef\xbb\xbf".to_vec(), &["is empty"]),
        ("t.jsonl", b"\xef\xbb\xbf\n".to_vec(), &["is empty"]),
        ("t.json", b"[]".to_vec(), &["is empty"]),
        ("t.parquet", b"".to_vec(), &["not a Parquet file"]),
    ] {
        let error = refusal(name, &bytes);
        for part in parts {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}

#[test]
fn json_that_holds_no_rows_is_refused_with_what_to_write() {
    for (text, parts) in [
        (r#"{"columns": ["text"], "index": [0], "data": [["a"]]}"#, &["\"split\"", "lines=True"][..]),
        (r#"{"text": {"0": "a"}, "b": {"0": 1}}"#, &["\"columns\"", "lines=True"]),
        (r#"{"text": ["a", "b"], "b": [1, 0]}"#, &["one object of columns", "lines=True"]),
        (r#"{"schema": {}, "data": [{"text": "a"}]}"#, &["\"table\""]),
        (r#"{"data": [{"text": "a"}]}"#, &["`data` holds the rows"]),
        (r#"[["text"], ["a"]]"#, &["t.json:1", "item 1", "orient"]),
        ("[{\"a\": 1},\n3]", &["t.json:2", "item 2"]),
        ("[{\"a\": 1}\n{\"a\": 2}]", &["t.json:2", "comma"]),
        ("[{\"a\": 1},\n]", &["t.json:2", "comma"]),
        ("[{\"a\": 1}", &["closed with ]"]),
        ("[{\"a\": 1}]\nx", &["t.json:2", "after the end"]),
        ("{\"a\": 1}\n{\"a\": \"b\n{\"a\": 3}\n", &["t.json:2: not a JSON object"]),
        ("{\"a\": 1}\n{\"a\": 2\n", &["t.json:2: not a JSON object"]),
        ("{\"a\": 1}\n{\"a\": 2} x\n", &["t.json:2: not a JSON object"]),
        ("{\"a\": 1}\n{\"b\": 2, \"b\": 3}\n", &["t.json:2", "`b` occurs twice"]),
        ("{\"a\": 1}\n{\"a\": \"\\ud83d\"}\n", &["t.json:2"]),
        ("{\"a\": NaNa}\n", &["t.json:1"]),
        ("{\"a\": \"NaN\", b}\n", &["t.json:1"]),
    ] {
        let error = refusal("t.json", text.as_bytes());
        for part in parts {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
    // One row is a row, whatever its lists.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.json");
    fs::write(&path, r#"{"id": 1, "tags": ["a"], "spans": [{"x": 1}]}"#).unwrap();
    assert_eq!(read(&path, Quoting::Standard).unwrap().0, ["id", "tags", "spans"]);
    let columns = Columns { text: "spans".into(), ..Columns::default() };
    let error = format!("{:#}", read_examples(&path, &columns, None).unwrap_err());
    assert!(error.contains("t.json:1: column `spans` holds a list of objects") && error.contains("prepare"), "{error}");
}

#[test]
fn a_missing_key_is_said_and_null_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.jsonl");
    fs::write(&path, "{\"id\": 1, \"text\": null}\n{\"id\": 2}\n{\"text\": \"c\"}\n{\"id\": 4}\n").unwrap();
    let columns = Columns { id: Some("id".into()), text: "text".into(), ..Columns::default() };
    let read = read_examples(&path, &columns, None).unwrap();
    let said = read.doubts.join("\n");
    assert!(said.contains("2 rows lack the key `text`, first") && said.contains("t.jsonl:2;"), "{said}");
    assert!(said.contains("1 row lacks the key `id`, first") && said.contains("t.jsonl:3;"), "{said}");
    fs::write(&path, "{\"id\": 1, \"text\": null}\n").unwrap();
    assert!(read_examples(&path, &columns, None).unwrap().doubts.is_empty());
}

#[test]
fn a_single_object_that_may_hold_the_rows_is_named_where_its_columns_do_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.json");
    fs::write(&path, r#"{"version": 1, "data": [{"text": "a", "x": 1}]}"#).unwrap();
    let error = |columns: &Columns| format!("{:#}", read_examples(&path, columns, None).unwrap_err());
    let missing = error(&Columns { text: "text".into(), ..Columns::default() });
    assert!(
        missing.contains("no column `text`") && missing.contains("its `data` holds a list of objects"),
        "{missing}"
    );
    let wrong = error(&Columns { text: "data".into(), ..Columns::default() });
    assert!(wrong.contains("write that list alone") && !wrong.contains("llmcls prepare"), "{wrong}");
    // A row like others.
    fs::write(&path, r#"{"text": "a", "spans": [{"start": 1}]}"#).unwrap();
    let columns = Columns { text: "text".into(), ..Columns::default() };
    assert_eq!(read_examples(&path, &columns, None).unwrap().examples[0].text, "a");
}

#[test]
fn signs_that_cannot_be_seen_are_spelled_out_in_names_of_columns() {
    let error = |header: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        fs::write(&path, format!("{header}\n1,2\n")).unwrap();
        format!("{:#}", read_examples(&path, &Columns { text: "text".into(), ..Columns::default() }, None).unwrap_err())
    };
    assert!(error("id,\u{200b}text").contains(r"`\u{200b}text`"));
    assert!(error("id,text\u{a0}").contains(r"`text\u{a0}`"));
    assert!(error("id,Grüße aus").contains("`Grüße aus`"));
}

#[test]
fn lines_before_the_header_and_python_dictionaries_are_named() {
    assert!(refusal("t.csv", b"My export\n\nid,text\n1,a\n").contains("lines before the names of the columns"));
    assert!(refusal("t.jsonl", b"{'text': 'a'}\n").contains("json.dumps"));
    assert!(refusal("t.jsonl", b"{\"text\": \"a\"}{\"text\": \"b\"}\n").contains("on a line of its own"));
    assert!(refusal("t.jsonl", b"{\"text\": \"a\\ud83d\"}\n").contains("half of a character"));
    assert!(refusal("t.jsonl", b"\x1f\x8b\x08\x00\x00\x00\x00\x00").contains("gzip"));
    // Files that were saved with a mark twice.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
    fs::write(&path, "\u{feff}\u{feff}id,text\n1,a\n").unwrap();
    assert_eq!(read(&path, Quoting::Standard).unwrap().0, ["id", "text"]);
}

#[test]
fn columns_that_are_not_asked_for_are_left_out_and_the_others_are_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let json = "{\"a\": \"x\", \"b\": [\"y\", \"z\"], \"c\": {\"d\": 1}}\n{\"b\": [], \"c\": 2}\n{\"a\": null, \"b\": [\"w\"]}\n";
    for path in [write("t.jsonl", json), write("t.json", &format!("[{}]", json.trim_end().replace('\n', ",")))] {
        let rows = Rows::open(&path, Quoting::Standard).unwrap();
        let place = rows.find("b").unwrap();
        let mut rows = rows.only(&[place]).unwrap();
        let mut found = Vec::new();
        while rows.advance().unwrap() {
            found.push(plain(rows.cell(place).unwrap()));
            assert_eq!(rows.cell(rows.find("a").unwrap()).unwrap(), Cell::Missing);
        }
        assert_eq!(json!(found), json!([["y", "z"], [], ["w"]]));
    }
    let path = Path::new("tests/fixtures/amazoncat/test-00000.parquet");
    let column = |only: bool| {
        let mut rows = Rows::open(path, Quoting::Standard).unwrap();
        let place = rows.find("target_ind").unwrap();
        if only {
            rows = rows.only(&[place]).unwrap();
        }
        let mut found = Vec::new();
        while rows.advance().unwrap() {
            found.push(plain(rows.cell(place).unwrap()));
        }
        found
    };
    assert_eq!(column(true), column(false));
    assert!(!column(true).is_empty());
}
