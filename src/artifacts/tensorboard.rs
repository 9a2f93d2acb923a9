//! Event files that TensorBoard reads: scalars over steps.
//!
//! A file is a list of records: length, its checksum, a protocol-buffer `Event`, its checksum. The few
//! fields that scalars need are encoded here by hand.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Appends events to one file. Each process that trains writes a file of its own.
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Starts a file in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("{}: cannot create", directory.display()))?;
        let name = format!("events.out.tfevents.{}.llmcls.{}", jiff::Timestamp::now().as_second(), std::process::id());
        let path = directory.join(name);
        let file = File::create(&path).with_context(|| format!("{}: cannot create", path.display()))?;
        let mut writer = Self { file };
        writer.write(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        Ok(writer)
    }

    /// Adds named numbers at a step.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn scalars<'a>(&mut self, step: usize, scalars: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, number) in scalars {
            let mut value = bytes_field(1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((number as f32).to_le_bytes());
            summary.extend(bytes_field(1, &value));
        }
        self.write(&event(step, &bytes_field(5, &summary)))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record =
            [&length[..], &masked_checksum(&length).to_le_bytes(), event, &masked_checksum(event).to_le_bytes()]
                .concat();
        self.file.write_all(&record).context("cannot write TensorBoard's event file")
    }
}

/// `wall_time` and `step`, then another field.
fn event(step: usize, field: &[u8]) -> Vec<u8> {
    let seconds = jiff::Timestamp::now().as_millisecond() as f64 / 1e3;
    let mut event = vec![1 << 3 | 1];
    event.extend(seconds.to_le_bytes());
    event.push(2 << 3);
    event.extend(variable(step as u64));
    event.extend(field);
    event
}

/// A field of bytes: its key, its length, its contents.
fn bytes_field(number: u8, contents: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(variable(contents.len() as u64));
    field.extend(contents);
    field
}

/// Seven bits a byte, lowest first; the top bit says that more follow.
fn variable(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// CRC-32C, rotated and shifted so that a checksum of data with checksums in them stays meaningful.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_published_form() {
        // A checksum of TensorFlow's own: the first record of any event file is 24 or more bytes long.
        assert_eq!(variable(300), [0xac, 0x02]);
        assert_eq!(bytes_field(5, b"ab"), [0x2a, 2, b'a', b'b']);
        // The CRC-32C of 32 zeros is published in RFC 3720, B.4.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let directory = tempfile::tempdir().unwrap();
        EventWriter::create(directory.path()).unwrap().scalars(3, [("a", 0.5)]).unwrap();
        let path = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(path).unwrap();
        let first = 12 + bytes[0] as usize + 4;
        let length = bytes[first] as usize;
        assert_eq!(bytes.len(), first + 12 + length + 4);
        assert!(bytes[first + 12..].windows(8).any(|part| part == [0x0a, 1, b'a', 0x15, 0, 0, 0, 0x3f]));
    }
}
