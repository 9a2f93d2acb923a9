//! `llmcls predict`: labels for the rows of a CSV file, streamed.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result, ensure};

use super::setup::{self, Loaded};
use crate::artifacts::classifier_file::ClassifierFile;
use crate::artifacts::records::{PredictionLine, names};
use crate::atomic_file;
use crate::cli::PredictArgs;
use crate::console::Console;
use crate::data::table::{Example, Table};
use crate::evaluation::evaluate;
use crate::kernels::device::Device;
use crate::metrics::Decision;

/// Rows held at a time: enough to batch by length, few enough that memory stays flat.
const WINDOW: usize = 2048;

/// Predicts.
///
/// # Errors
/// If the classifier or a row cannot be used; then no output file appears.
pub fn run(args: &PredictArgs, device: &Device, console: Console) -> Result<()> {
    let loaded = Loaded::open(&args.run, device, console)?;
    let mut table = Table::open(&args.input_csv, &loaded.columns(false)?)?;
    table.notes().iter().for_each(|note| console.say(note));
    let batch_size = loaded.batch_size(&args.run);
    let decision = decision(args, &loaded.file)?;
    let output = args.output.as_ref().unwrap_or(&args.output_jsonl);
    let is_csv = output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let predictor = Predictor { loaded, decision, batch_size, is_csv, console };
    if output.as_os_str() == "-" {
        let mut writer = BufWriter::new(io::stdout().lock());
        predictor.write_all(&mut table, &mut writer)?;
        return writer.flush().context("cannot write to standard output");
    }
    let mut rows = 0;
    atomic_file::write_file(output, |writer| {
        rows = predictor.write_all(&mut table, writer)?;
        Ok(())
    })?;
    console.say(format!("wrote {rows} predictions to {}", output.display()));
    Ok(())
}

/// What the flags make of the classifier's thresholds.
fn decision(args: &PredictArgs, file: &ClassifierFile) -> Result<Decision> {
    if let Some(count) = args.top_k {
        ensure!(count > 0, "--top_k is 0, expected at least 1");
        return Ok(Decision::Top(count));
    }
    let mut thresholds = file.thresholds.clone();
    for text in &args.threshold {
        // A label's name may hold an equals sign, a number does not.
        let (label, number) = text.rsplit_once('=').map_or((None, text.as_str()), |(label, n)| (Some(label), n));
        let threshold = number.trim().parse::<f32>().ok().filter(|number| (0.0..=1.0).contains(number));
        let threshold = threshold.with_context(|| format!("--threshold {text}: expected a number from 0 to 1"))?;
        match label {
            None => thresholds.fill(threshold),
            Some(label) => {
                let index = file.labels.iter().position(|name| name == label);
                let index = index.with_context(|| {
                    format!("--threshold {text}: no such label; there are {}", file.labels.join(", "))
                })?;
                thresholds[index] = threshold;
            }
        }
    }
    Ok(Decision::Above { thresholds, always_one: args.always_one })
}

struct Predictor {
    loaded: Loaded,
    decision: Decision,
    batch_size: usize,
    is_csv: bool,
    console: Console,
}

impl Predictor {
    /// Predicts all rows, a window at a time; returns how many there were.
    fn write_all(&self, table: &mut Table, writer: &mut impl Write) -> Result<usize> {
        let mut rows = 0;
        if self.is_csv {
            let labels = self.loaded.file.labels.iter().map(String::as_str);
            write_csv(writer, ["id", "predicted"].into_iter().chain(labels))?;
        }
        loop {
            let window = table.by_ref().take(WINDOW).collect::<Result<Vec<_>>>()?;
            if window.is_empty() {
                table.absences().iter().for_each(|warning| self.console.warn(warning));
                return Ok(rows);
            }
            self.write_window(&window, writer)?;
            rows += window.len();
        }
    }

    fn write_window(&self, examples: &[Example], writer: &mut impl Write) -> Result<()> {
        let Loaded { classifier, encoder, file, .. } = &self.loaded;
        let samples = setup::encode(encoder, examples)?;
        let mut bar = self.console.progress("predicting", samples.len(), "rows");
        let evaluation =
            evaluate(classifier, &samples, &self.decision, self.batch_size, |count| bar.advance(count, String::new))?;
        bar.finish();
        let predictions = &evaluation.predictions;
        for (row, example) in examples.iter().enumerate() {
            let predicted = names(&file.labels, &predictions.predicted[row]);
            let probabilities = &predictions.probabilities[row];
            if self.is_csv {
                let predicted = serde_json::to_string(&predicted)?;
                let numbers: Vec<String> = probabilities.iter().map(f32::to_string).collect();
                write_csv(writer, [&example.id, &predicted].into_iter().chain(&numbers))?;
                continue;
            }
            let line = PredictionLine {
                id: &example.id,
                probs: probabilities,
                labels: &file.labels,
                predicted,
                targets: None,
            };
            serde_json::to_writer(&mut *writer, &line)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// One record of CSV: id, the predicted labels as a JSON list, and each label's probability.
fn write_csv<T: AsRef<[u8]>>(writer: &mut impl Write, cells: impl IntoIterator<Item = T>) -> Result<()> {
    let mut record = csv::Writer::from_writer(&mut *writer);
    record.write_record(cells).context("cannot write")?;
    record.flush().context("cannot write")
}
