//! `llmcls predict`: labels for the rows of a CSV file, streamed.

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use super::loaded::Loaded;
use crate::atomic_file;
use crate::cli::PredictArgs;
use crate::console::{Console, output_error};
use crate::data::table::{Example, Table};
use crate::evaluation::NotFinite;
use crate::exit::Usage;
use crate::kernels::device::Device;
use crate::metrics::Decision;
use crate::run::classifier_file::ClassifierFile;
use crate::run::records::{PredictionLine, names};

/// Rows held at a time: enough to batch by length, few enough that memory stays flat.
const WINDOW: usize = 2048;

/// Predicts.
///
/// # Errors
/// If the classifier or a row cannot be used; then no output file appears.
pub fn run(args: &PredictArgs, device: &Device, console: Console) -> Result<()> {
    let output = args.output.as_ref().unwrap_or(&args.output_jsonl);
    let format = Format::of(output)?;
    atomic_file::refuse_input_as_output(output, [args.input_csv.as_path()])?;
    let loaded = Loaded::open(&args.run, device, console)?;
    atomic_file::refuse_input_as_output(output, loaded.predictor.trained.files().iter().map(PathBuf::as_path))?;
    let mut table = Table::open(&args.input_csv, &loaded.columns(false)?)?;
    table.notes().iter().for_each(|note| console.say(note));
    let batch_size = loaded.batch_size(&args.run);
    let decision = decision(args, &loaded.predictor.file)?;
    let columns = column_names(&loaded.predictor.file.labels);
    if matches!(format, Format::Separated(_)) {
        for (label, column) in
            loaded.predictor.file.labels.iter().zip(&columns[2..]).filter(|(label, column)| label != column)
        {
            console.say(format!("label `{label}` has the column `{column}`, because another one has its name"));
        }
    }
    let rows = PredictedRows { input: &args.input_csv, loaded, decision, batch_size, format, columns, console };
    if output.as_os_str() == "-" {
        let mut writer = BufWriter::new(io::stdout().lock());
        let written = rows.write_all(&mut table, &mut writer).and_then(|_| Ok(writer.flush()?));
        return written.map_err(|error| error.downcast::<io::Error>().map_or_else(|error| error, output_error));
    }
    let mut count = 0;
    atomic_file::write_file(output, |writer| {
        count = rows.write_all(&mut table, writer)?;
        Ok(())
    })?;
    let rows = if count == 1 { "prediction" } else { "predictions" };
    console.say(format!("wrote {count} {rows} to {}", output.display()));
    Ok(())
}

/// What the flags make of the classifier's thresholds.
fn decision(args: &PredictArgs, file: &ClassifierFile) -> Result<Decision> {
    if let Some(count) = args.top_k {
        return Ok(Decision::Top(count));
    }
    let mut thresholds = file.thresholds.clone();
    for text in &args.threshold {
        // A label's name may hold an equals sign, a number does not.
        let (label, number) = text.rsplit_once('=').map_or((None, text.as_str()), |(label, n)| (Some(label), n));
        let threshold = number.trim().parse::<f32>().ok().filter(|number| (0.0..=1.0).contains(number));
        let threshold = threshold.ok_or_else(|| Usage(format!("--threshold {text}: expected a number from 0 to 1")))?;
        match label {
            None => thresholds.fill(threshold),
            Some(label) => {
                let index = file.labels.iter().position(|name| name == label);
                let index = index.ok_or_else(|| {
                    Usage(format!("--threshold {text}: no such label; there are {}", file.labels.join(", ")))
                })?;
                thresholds[index] = threshold;
            }
        }
    }
    Ok(Decision::Above { thresholds, always_one: args.always_one })
}

/// The form of the predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// One JSON object a line.
    JsonLines,
    /// A header, then a record a row, with this sign between cells.
    Separated(u8),
}

impl Format {
    /// By the output's ending. A name without one, standard output, a device or a FIFO get JSON lines.
    fn of(output: &Path) -> Result<Self> {
        let ending = output.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            None | Some("jsonl" | "ndjson") => Ok(Self::JsonLines),
            Some("csv") => Ok(Self::Separated(b',')),
            Some("tsv") => Ok(Self::Separated(b'\t')),
            Some(_) if atomic_file::is_stream(output) => Ok(Self::JsonLines),
            Some(ending) => Err(Usage(format!(
                "{}: predictions are written as JSON lines (.jsonl) or as a table (.csv, .tsv), not as .{ending}",
                output.display()
            ))
            .into()),
        }
    }
}

/// `id`, `predicted` and one column a label. No two have one name: a reader would take one for the other.
fn column_names(labels: &[String]) -> Vec<String> {
    let mut names = vec!["id".to_owned(), "predicted".to_owned()];
    for label in labels {
        let mut name = label.clone();
        // The other labels keep their names.
        while names.contains(&name) || name != *label && labels.contains(&name) {
            name = format!("label_{name}");
        }
        names.push(name);
    }
    names
}

/// A cell that a spreadsheet would run as a formula gets an apostrophe in front, as OWASP advises. Numbers
/// stay as they are.
fn without_formula(cell: &str) -> Cow<'_, str> {
    let is_formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && cell.parse::<f64>().is_err();
    if is_formula { Cow::Owned(format!("'{cell}")) } else { Cow::Borrowed(cell) }
}

struct PredictedRows<'a> {
    input: &'a Path,
    loaded: Loaded,
    decision: Decision,
    batch_size: usize,
    format: Format,
    columns: Vec<String>,
    console: Console,
}

impl PredictedRows<'_> {
    /// Predicts all rows, a window at a time; returns how many there were.
    fn write_all(&self, table: &mut Table, writer: &mut impl Write) -> Result<usize> {
        let mut rows = 0;
        if let Format::Separated(separator) = self.format {
            writer.write_all(&record(separator, self.columns.iter().map(|name| without_formula(name)))?)?;
        }
        loop {
            let window = table.by_ref().take(WINDOW).collect::<Result<Vec<_>>>()?;
            if window.is_empty() {
                table.absences().iter().for_each(|warning| self.console.warn(warning));
                return Ok(rows);
            }
            self.write_window(&window, rows, writer)?;
            rows += window.len();
        }
    }

    fn write_window(&self, examples: &[Example], before: usize, writer: &mut impl Write) -> Result<()> {
        let predictor = &self.loaded.predictor;
        let labels = &predictor.file.labels;
        let samples = predictor.encode(examples, &self.input.display().to_string(), before)?;
        let mut bar = self.console.progress("predicting", samples.len(), "rows");
        let evaluation = predictor
            .evaluate(&samples, &self.decision, self.batch_size, |count| bar.advance(count, String::new))
            .map_err(|error| NotFinite::named(error, |row| examples[row].location(self.input, before + row)))?;
        bar.finish();
        let predictions = &evaluation.predictions;
        for (row, example) in examples.iter().enumerate() {
            let predicted = names(labels, &predictions.predicted[row]);
            let probabilities = &predictions.probabilities[row];
            let mut line = match self.format {
                Format::Separated(separator) => {
                    let predicted = serde_json::to_string(&predicted)?;
                    let cells = [without_formula(&example.id), predicted.into()];
                    record(separator, cells.into_iter().chain(probabilities.iter().map(|p| p.to_string().into())))?
                }
                Format::JsonLines => serde_json::to_vec(&PredictionLine {
                    id: &example.id,
                    probs: probabilities,
                    labels,
                    predicted,
                    targets: None,
                })?,
            };
            if self.format == Format::JsonLines {
                line.push(b'\n');
            }
            writer.write_all(&line)?;
        }
        Ok(())
    }
}

/// One line of a table.
fn record<'a>(separator: u8, cells: impl IntoIterator<Item = Cow<'a, str>>) -> Result<Vec<u8>> {
    let mut record = csv::WriterBuilder::new().delimiter(separator).from_writer(Vec::new());
    record.write_record(cells.into_iter().map(Cow::into_owned))?;
    record.into_inner().map_err(|error| anyhow!("cannot write a record: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_names_are_unique_whatever_the_labels_are_called() {
        for (labels, expected) in [
            (&["a", "text"][..], &["id", "predicted", "a", "text"][..]),
            (&["id", "x"], &["id", "predicted", "label_id", "x"]),
            (&["predicted", "label_id", "id"], &["id", "predicted", "label_predicted", "label_id", "label_label_id"]),
        ] {
            let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
            assert_eq!(column_names(&labels), expected);
        }
    }

    #[test]
    fn cells_that_a_spreadsheet_would_run_are_text_and_numbers_stay() {
        for cell in ["=HYPERLINK(\"x\")", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-a"] {
            assert_eq!(without_formula(cell), format!("'{cell}"));
        }
        for cell in ["", "a=1", "-5", "+3.5", "-1e-7", "7"] {
            assert_eq!(without_formula(cell), cell);
        }
        assert_eq!(record(b'\t', ["a\tb".into(), "c".into()]).unwrap(), b"\"a\tb\"\tc\n");
    }

    #[test]
    fn an_unknown_ending_is_refused() {
        for (name, format) in [
            ("a.csv", Format::Separated(b',')),
            ("a.TSV", Format::Separated(b'\t')),
            ("a.jsonl", Format::JsonLines),
            ("preds", Format::JsonLines),
            ("-", Format::JsonLines),
            ("/dev/null", Format::JsonLines),
            ("/dev/fd/1", Format::JsonLines),
        ] {
            assert_eq!(Format::of(Path::new(name)).unwrap(), format, "{name}");
        }
        for name in ["a.parquet", "a.json", "a.xlsx", "a.csv.gz", "a.txt", "a.html"] {
            let error = Format::of(Path::new(name)).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains(name), "{error}");
        }
    }
}
