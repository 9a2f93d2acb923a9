//! Event files that TensorBoard reads: scalars and precision–recall curves over steps, and what was chosen
//! before training.
//!
//! A file is a list of records: length, its checksum, a protocol-buffer `Event`, its checksum. The few
//! fields that these need are encoded here by hand.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::metrics::curves::AtThreshold;

/// Appends events to one file. Each process that trains writes a file of its own.
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Starts a file in `directory`, which is made if it is not there.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("{}: cannot create", directory.display()))?;
        let name = format!("events.out.tfevents.{}.llmcls.{}", jiff::Timestamp::now().as_second(), std::process::id());
        // A short training ends in the second in which it began.
        let names = (0..).map(|number| if number == 0 { name.clone() } else { format!("{name}.{number}") });
        let path = names.map(|name| directory.join(name)).find(|path| !path.exists()).expect("numbers do not end");
        let file = File::create_new(&path).with_context(|| format!("{}: cannot create", path.display()))?;
        let mut writer = Self { file };
        writer.write(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        Ok(writer)
    }

    /// Adds named numbers at a step.
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

    /// Adds a label's curve at a step: at evenly spaced thresholds from 0 to 1.
    pub fn pr_curve(&mut self, step: usize, tag: &str, curve: &[AtThreshold]) -> Result<()> {
        // One row each: counts of the four outcomes, precision, recall.
        let rows: [fn(&AtThreshold) -> f64; 6] = [
            |point| point.true_positives as f64,
            |point| point.false_positives as f64,
            |point| point.true_negatives as f64,
            |point| point.false_negatives as f64,
            AtThreshold::precision,
            AtThreshold::recall,
        ];
        let numbers: Vec<f32> = rows.iter().flat_map(|row| curve.iter().map(|point| row(point) as f32)).collect();
        // `PrCurvePluginData`: version 0 is left out, as protocol buffers do; then the thresholds' number.
        let content = number_field(2, curve.len() as u64);
        let value = summary_value(tag, ("pr_curves", &content), &tensor(&[rows.len(), curve.len()], &numbers));
        self.write(&event(step, &bytes_field(5, &bytes_field(1, &value))))
    }

    /// Adds hyper-parameters: a row of the table of runs.
    pub fn hyperparameters(&mut self, chosen: &[(&str, Hyperparameter)]) -> Result<()> {
        let mut session = Vec::new();
        for (name, value) in chosen {
            // `google.protobuf.Value`
            let value = match value {
                Hyperparameter::Number(number) => double_field(2, *number),
                Hyperparameter::Text(text) => bytes_field(3, text.as_bytes()),
            };
            session.extend(bytes_field(1, &[bytes_field(1, name.as_bytes()), bytes_field(2, &value)].concat()));
        }
        session.extend(double_field(5, seconds()));
        // `HParamsPluginData` with a `SessionStartInfo`.
        let content = bytes_field(3, &session);
        let value = summary_value("_hparams_/session_start_info", ("hparams", &content), &tensor(&[1], &[0.0]));
        self.write(&event(0, &bytes_field(5, &bytes_field(1, &value))))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record =
            [&length[..], &masked_checksum(&length).to_le_bytes(), event, &masked_checksum(event).to_le_bytes()]
                .concat();
        self.file.write_all(&record).context("cannot write TensorBoard's event file")
    }
}

/// The value of a hyper-parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Hyperparameter {
    /// A number.
    Number(f64),
    /// Anything else.
    Text(String),
}

/// A `Summary.Value` whose meaning a plugin knows: tag, tensor, metadata.
fn summary_value(tag: &str, (plugin, content): (&str, &[u8]), tensor: &[u8]) -> Vec<u8> {
    let plugin = bytes_field(1, &[bytes_field(1, plugin.as_bytes()), bytes_field(2, content)].concat());
    [bytes_field(1, tag.as_bytes()), bytes_field(8, tensor), bytes_field(9, &plugin)].concat()
}

/// A `TensorProto` of f32.
fn tensor(shape: &[usize], numbers: &[f32]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|&size| bytes_field(2, &number_field(1, size as u64))).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    [number_field(1, 1), bytes_field(2, &dims), bytes_field(4, &bytes)].concat()
}

fn seconds() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1e3
}

/// `wall_time` and `step`, then another field.
fn event(step: usize, field: &[u8]) -> Vec<u8> {
    [&double_field(1, seconds()), &number_field(2, step as u64), field].concat()
}

/// A field of a whole number.
fn number_field(number: u8, value: u64) -> Vec<u8> {
    let mut field = vec![number << 3];
    field.extend(variable(value));
    field
}

/// A field of an f64.
fn double_field(number: u8, value: f64) -> Vec<u8> {
    let mut field = vec![number << 3 | 1];
    field.extend(value.to_le_bytes());
    field
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
