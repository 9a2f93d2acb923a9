//! Files appended to this program: `bundle` makes a program that carries a classifier.
//!
//! ```text
//! program | file, from a multiple of 4096 on | file … | index (JSON) | its length (8 bytes) | its SHA-256 | MAGIC
//! ```
//! The program's own path stands for the directory of these files: below a file no others can lie. Each file is checked
//! by its SHA-256 when it is read or mapped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 16] = b"LLMCLS BUNDLE 1\n";
const HASH: usize = 32;
const TRAILER: usize = 8 + HASH + MAGIC.len();
/// Where files start, so that they can be mapped.
const ALIGNMENT: u64 = 4096;
/// No index is longer.
const LONGEST_INDEX: u64 = 1 << 24;

/// The files of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    /// Bytes of the program itself.
    program: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    offset: u64,
    bytes: u64,
    sha256: String,
}

/// The program that runs, and its files.
struct Own {
    path: PathBuf,
    index: Index,
}

static OWN: OnceLock<Option<Own>> = OnceLock::new();

/// A file that is to be appended.
#[derive(Clone, Debug)]
pub enum Part {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// Where bytes of a file lie, and what they must be.
pub struct Location {
    /// The program.
    pub path: PathBuf,
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    sha256: String,
}

impl Location {
    /// Checks what was read or mapped.
    ///
    /// # Errors
    /// If it is not what was appended.
    pub fn check(&self, contents: &[u8]) -> io::Result<()> {
        if format!("{:x}", Sha256::digest(contents)) == self.sha256 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidData, "the bundle is damaged: this part has changed since it was written"))
    }
}

/// Looks for files appended to the running program. Call it once, before the functions below.
///
/// # Errors
/// If there are some, and their index is damaged.
pub fn open() -> io::Result<()> {
    let path = std::env::current_exe()?;
    let index = read_index(&mut File::open(&path)?)?;
    // Nobody else sets it.
    let _ = OWN.set(index.map(|index| Own { path, index }));
    Ok(())
}

/// The directory that stands for the files of the running program, if it carries any.
#[must_use]
pub fn root() -> Option<&'static Path> {
    own().map(|own| own.path.as_path())
}

/// Returns true if a path is that of an appended file, or of a directory of such files.
#[must_use]
pub fn contains(path: &Path) -> bool {
    entry(path).is_some() || is_own_directory(path)
}

/// Like [`Path::is_file`], for appended files too.
#[must_use]
pub fn is_file(path: &Path) -> bool {
    entry(path).is_some() || path.is_file()
}

/// Like [`Path::is_dir`], for appended files too.
#[must_use]
pub fn is_dir(path: &Path) -> bool {
    is_own_directory(path) || path.is_dir()
}

/// Like [`fs::read`], for appended files too.
///
/// # Errors
/// As there, or if an appended file is damaged.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let Some(location) = location(path) else { return fs::read(path) };
    let mut file = File::open(&location.path)?;
    file.seek(SeekFrom::Start(location.offset))?;
    let mut contents = Vec::new();
    file.take(location.bytes).read_to_end(&mut contents)?;
    location.check(&contents)?;
    Ok(contents)
}

/// Like [`fs::read_to_string`], for appended files too.
///
/// # Errors
/// As [`read`].
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// Where an appended file lies; `None` for every other path.
#[must_use]
pub fn location(path: &Path) -> Option<Location> {
    let Entry { offset, bytes, sha256 } = entry(path)?.clone();
    Some(Location { path: own()?.path.clone(), offset, bytes, sha256 })
}

fn own() -> Option<&'static Own> {
    OWN.get().and_then(Option::as_ref)
}

fn entry(path: &Path) -> Option<&'static Entry> {
    own()?.index.files.get(&name_in_bundle(path)?)
}

fn is_own_directory(path: &Path) -> bool {
    let Some(name) = name_in_bundle(path) else { return false };
    let prefix = format!("{name}/");
    own().is_some_and(|own| own.index.files.keys().any(|file| name.is_empty() || file.starts_with(&prefix)))
}

/// `base/config.json`, whatever the separator here.
fn name_in_bundle(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(&own()?.path).ok()?;
    let parts: Option<Vec<&str>> = inside.components().map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

fn read_index(program: &mut File) -> io::Result<Option<Index>> {
    let length = program.metadata()?.len();
    let Some(start) = length.checked_sub(TRAILER as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER];
    program.seek(SeekFrom::Start(start))?;
    program.read_exact(&mut trailer)?;
    let Some(rest) = trailer.strip_suffix(MAGIC) else { return Ok(None) };
    let damaged = || Error::new(ErrorKind::InvalidData, "the list of the files of this bundle is damaged");
    let (bytes, hash) = rest.split_at(8);
    let bytes = u64::from_le_bytes(bytes.try_into().map_err(|_| damaged())?);
    let start = start.checked_sub(bytes).filter(|_| bytes < LONGEST_INDEX).ok_or_else(damaged)?;
    let mut text = vec![0; bytes as usize];
    program.seek(SeekFrom::Start(start))?;
    program.read_exact(&mut text)?;
    if Sha256::digest(&text).as_slice() != hash {
        return Err(damaged());
    }
    let index: Index = serde_json::from_slice(&text).map_err(|_| damaged())?;
    let fits = |entry: &Entry| entry.offset.checked_add(entry.bytes).is_some_and(|end| end <= start);
    if !index.files.values().all(fits) || index.program > start {
        return Err(damaged());
    }
    Ok(Some(index))
}

/// Writes this program with files appended, in place of those that it carries itself. Returns its bytes.
///
/// # Errors
/// If a file cannot be read, or `writer` fails.
pub fn write(writer: &mut impl Write, parts: &BTreeMap<String, Part>) -> anyhow::Result<u64> {
    let program = std::env::current_exe()?;
    let mut source = File::open(&program)?;
    let bytes = match read_index(&mut source)? {
        Some(index) => index.program,
        None => source.metadata()?.len(),
    };
    source.seek(SeekFrom::Start(0))?;
    let mut at = io::copy(&mut source.take(bytes), writer)?;
    let mut index = Index { program: bytes, files: BTreeMap::new() };
    for (name, part) in parts {
        let offset = at.next_multiple_of(ALIGNMENT);
        io::copy(&mut io::repeat(0).take(offset - at), writer)?;
        let mut hashed = Hashed { writer: &mut *writer, hash: Sha256::new() };
        let bytes = match part {
            Part::File(path) => {
                let file = File::open(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
                io::copy(&mut io::BufReader::with_capacity(1 << 20, file), &mut hashed)?
            }
            Part::Bytes(contents) => io::copy(&mut contents.as_slice(), &mut hashed)?,
        };
        let sha256 = format!("{:x}", hashed.hash.finalize());
        index.files.insert(name.clone(), Entry { offset, bytes, sha256 });
        at = offset + bytes;
    }
    let text = serde_json::to_vec(&index)?;
    writer.write_all(&text)?;
    writer.write_all(&(text.len() as u64).to_le_bytes())?;
    writer.write_all(&Sha256::digest(&text))?;
    writer.write_all(MAGIC)?;
    Ok(at + (text.len() + TRAILER) as u64)
}

/// Writes through, and hashes.
struct Hashed<'a, W> {
    writer: &'a mut W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_found_and_damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("bundle");
        let parts = BTreeMap::from([
            ("base/config.json".to_owned(), Part::Bytes(b"{}".to_vec())),
            ("base/empty".to_owned(), Part::Bytes(Vec::new())),
            ("adapter/a".to_owned(), Part::Bytes(vec![7; 5000])),
        ]);
        let total = write(&mut File::create(&out).unwrap(), &parts).unwrap();
        let mut file = File::open(&out).unwrap();
        assert_eq!(file.metadata().unwrap().len(), total);
        let index = read_index(&mut file).unwrap().unwrap();
        assert_eq!(index.program, fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
        let bytes = fs::read(&out).unwrap();
        for (name, part) in &parts {
            let Part::Bytes(contents) = part else { panic!("only bytes were given") };
            let entry = &index.files[name];
            assert_eq!(entry.offset % ALIGNMENT, 0);
            let found = &bytes[entry.offset as usize..][..entry.bytes as usize];
            assert_eq!(found, contents);
            let location =
                Location { path: out.clone(), offset: entry.offset, bytes: entry.bytes, sha256: entry.sha256.clone() };
            location.check(found).unwrap();
            assert!(location.check(b"other").unwrap_err().to_string().contains("damaged"));
        }
        let mut damaged = bytes.clone();
        damaged[bytes.len() - TRAILER - 3] ^= 1;
        fs::write(&out, damaged).unwrap();
        assert!(read_index(&mut File::open(&out).unwrap()).is_err());
        fs::write(&out, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read_index(&mut File::open(&out).unwrap()).unwrap(), None);
    }
}
