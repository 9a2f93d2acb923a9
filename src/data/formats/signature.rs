//! Recognises files of other formats by their first bytes, and says how to make them readable.

use anyhow::{Result, bail};

/// Follows the name of a cell or column.
pub(super) const NOT_UTF8: &str = "is not valid UTF-8 (it may be Latin-1 or Windows-1252); save the file as UTF-8, as a spreadsheet's \"CSV UTF-8\" \
     or with: iconv -f WINDOWS-1252 -t UTF-8";

/// Formats that begin with fixed bytes, with what to do.
const SIGNATURES: [(&[u8], &str, &str); 22] = [
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gzip -d"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first: zstd -d"),
    (b"BZh", "compressed with bzip2", "decompress it first: bzip2 -d"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it first: xz -d"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "decompress it first: lz4 -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "extract it first"),
    (b"Rar!", "a RAR archive", "extract it first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", "save the sheet as \"CSV UTF-8\""),
    (b"%PDF-", "a PDF document", "export its rows as CSV"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"PAR1", "a Parquet file", "name it .parquet; it cannot be read from standard input"),
    (b"ARROW1", "an Arrow or Feather file", "write it as Parquet or CSV"),
    (b"FEA1", "a Feather file", "write it as Parquet or CSV"),
    (b"ORC", "an ORC file", "write it as Parquet or CSV"),
    (b"Obj\x01", "an Avro file", "write it as Parquet or CSV"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as Parquet or CSV"),
    (b"\x93NUMPY", "a NumPy array", "write it as Parquet or CSV"),
    (b"\x80\x04\x95", "a Python pickle", "write it as Parquet or CSV"),
    (b"\x80\x05\x95", "a Python pickle", "write it as Parquet or CSV"),
    (b"\xff\xd8\xff", "a JPEG picture", "rows are text"),
    (b"\x89PNG", "a PNG picture", "rows are text"),
];

/// The bytes after a UTF-8 byte-order mark. Files that were saved or joined twice have several.
pub(super) fn without_mark(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        bytes = rest;
    }
    bytes
}

/// Refuses a file that begins as one of a format other than `expected`: csv, json or parquet.
///
/// # Errors
/// Names the format and what to do.
pub(super) fn refuse_other_formats(path: &str, head: &[u8], expected: &str) -> Result<()> {
    if let Some((what, way_out)) = other_format(head, expected) {
        bail!(
            "{path}: is {what}, expected {}; {way_out}",
            match expected {
                "json" => "JSON",
                "parquet" => "Parquet",
                _ => "CSV",
            }
        );
    }
    Ok(())
}

fn other_format(head: &[u8], expected: &str) -> Option<(&'static str, &'static str)> {
    let is_signed = SIGNATURES.iter().any(|(bytes, ..)| head.starts_with(bytes));
    if let Some(encoding) = wide_encoding(head).filter(|_| !is_signed) {
        return Some((encoding, "save it as UTF-8, as a spreadsheet's \"CSV UTF-8\" or with iconv -t UTF-8"));
    }
    if head.starts_with(b"PK\x03\x04") {
        let has = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
        return Some(match has(b"xl/") || has(b"[Content_Types].xml") || has(b"_rels/") {
            true => ("an Excel workbook (.xlsx, a zip archive)", "save the sheet as \"CSV UTF-8\""),
            false if has(b"opendocument.spreadsheet") => ("an OpenDocument sheet (.ods)", "save the sheet as CSV"),
            false => ("a zip archive (or an Excel workbook)", "extract it, or save the sheet as \"CSV UTF-8\""),
        });
    }
    let found = SIGNATURES.iter().find(|(bytes, ..)| head.starts_with(bytes));
    if let Some(&(bytes, what, way_out)) = found {
        // Text, too, may begin with these letters.
        let is_text = head.iter().all(|&byte| byte >= b' ' || b"\t\r\n".contains(&byte));
        let may_be_text = [&b"BZh"[..], b"Rar!", b"ORC", b"FEA1", b"PAR1", b"ARROW1"].contains(&bytes);
        return (!(may_be_text && is_text || bytes == b"PAR1" && expected == "parquet")).then_some((what, way_out));
    }
    let text = without_mark(head).trim_ascii_start();
    let begins = |word: &str| text.len() >= word.len() && text[..word.len()].eq_ignore_ascii_case(word.as_bytes());
    if begins("<!doctype") || begins("<html") || begins("<?xml") {
        return Some(("HTML or XML", "it may be a page in place of a download; write the rows as CSV"));
    }
    if begins("version https://git-lfs") {
        return Some(("a pointer of Git LFS", "get the file itself: git lfs pull"));
    }
    if expected == "csv" && is_json(text) {
        return Some(("JSON", "name it .jsonl or .json"));
    }
    if expected == "json" && !text.is_empty() && !text.starts_with(b"{") && !text.starts_with(b"[") {
        return Some(("not JSON: it begins with neither { nor [", "name it .csv if it is CSV"));
    }
    None
}

/// Returns true if text is a JSON object, or a list of objects or lists, rather than the header of a CSV file.
pub(super) fn is_json(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    match text.split_first() {
        Some((b'{', rest)) => matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')),
        Some((b'[', rest)) => matches!(rest.trim_ascii_start().first(), Some(b'{' | b'[' | b']')),
        _ => false,
    }
}

/// UTF-16 or UTF-32, by mark or by the zero bytes beside letters.
fn wide_encoding(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some("text in UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Some("text in UTF-16"),
        _ => {}
    }
    let head = &head[..head.len().min(64) / 4 * 4];
    let zeros = |index: usize| head.chunks_exact(4).filter(|four| four[index] == 0).count();
    let [a, b, c, d] = [0, 1, 2, 3].map(zeros);
    let all = head.len() / 4;
    if all == 0 {
        return None;
    }
    if b == all && c == all && (a == all || d == all) {
        return Some("text in UTF-32");
    }
    // Separators and digits have a zero byte in every language.
    let (even, odd) = (a + c, b + d);
    (even.max(odd) * 5 >= all && even.min(odd) == 0).then_some("text in UTF-16")
}
