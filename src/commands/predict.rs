//! `llmcls predict`: labels for the rows of a CSV file, streamed.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::loaded::Loaded;
use super::predict_input::{self, Input, Origin, WindowSize};
use super::predict_parquet::ParquetTable;
use crate::atomic_file;
use crate::cli::PredictArgs;
use crate::cluster::{Group, share};
use crate::config::model::ProblemType;
use crate::console::{Console, ProgressMeter, output_error};
use crate::data::columns::Columns;
use crate::data::table::Example;
use crate::evaluation::NotFinite;
use crate::exit::{Usage, quoted};
use crate::experiment::{warnings, why};
use crate::interrupt;
use crate::kernels::device::Device;
use crate::metrics::{Decision, Predictions};
use crate::model::attributions::Explainer;
use crate::partial_output::{PartialOutput, Start};
use crate::predictor::Precision;
use crate::run::classifier_file::ClassifierFile;
use crate::run::int8_file;
use crate::run::manifest;
use crate::run::records::{PredictionLine, Why, names};

/// Predicts.
///
/// # Errors
/// If the classifier or a row cannot be used; then no output file appears.
pub fn run(args: &PredictArgs, device: &Device, group: &Group, console: Console) -> Result<()> {
    let origin = Origin::of(args)?;
    if !group.is_leader() {
        return help(args, &origin, device, group, console);
    }
    let output = args.output.as_ref().or(args.output_jsonl.as_ref());
    let output = output.map_or_else(|| origin.default_output(args), PathBuf::as_path);
    let format = Format::of(output)?;
    format.check(args)?;
    let is_to_file = output.as_os_str() != "-" && !atomic_file::is_stream(output);
    if args.resume && (!is_to_file || !origin.can_be_read_again()) {
        return Err(
            Usage("--resume needs an input file and an output file: a stream cannot be read again".into()).into()
        );
    }
    let input: Vec<PathBuf> = origin.given().into_iter().collect();
    refuse_outputs(output, &input)?;
    let loaded = Loaded::open_in(&args.run, args.precision, device, console)?;
    refuse_outputs(output, &loaded.predictor.files())?;
    let columns = loaded.columns(false)?;
    let input = origin.open(args, &columns)?;
    input.notes(console);
    let total = origin.file().map(|path| predict_input::count(path, &columns)).transpose()?;
    let range = range(args, total)?;
    let decision = decision(args, &loaded.predictor.file)?;
    let job = || job(&loaded, args.precision.precision, &decision, &origin, &range, (&columns, format, args.explain));
    let is_resumable = is_to_file && origin.file().is_some() && format != Format::Parquet;
    let job = if is_resumable { Some(job()?) } else { None };
    let names = column_names(&loaded.predictor.file.labels);
    if matches!(format, Format::Separated(_) | Format::Parquet) {
        say_renamed(&loaded.predictor.file.labels, &names[2..], console);
    }
    let batch_size = loaded.batch_size(&args.run);
    let rows = PredictedRows {
        input: origin.path(),
        loaded,
        decision,
        batch_size,
        format,
        explains: args.explain,
        columns: names,
        range,
        group,
        console,
    };
    if output.as_os_str() == "-" {
        let mut writer = BufWriter::new(io::stdout().lock());
        let written = rows.write_all(input, &mut writer, 0, |writer, _| Ok(writer.flush()?));
        return written
            .map(|_| ())
            .map_err(|error| error.downcast::<io::Error>().map_or_else(|error| error, output_error));
    }
    let count = match job {
        Some(job) => rows.write_resumable(input, output, job, args.resume)?,
        None if format == Format::Parquet => rows.write_parquet(input, output)?,
        None => {
            let mut count = 0;
            atomic_file::write_file(output, |writer| {
                count = rows.write_all(input, writer, 0, |writer, _| Ok(writer.flush()?))?;
                Ok(())
            })?;
            count
        }
    };
    let rows = if count == 1 { "prediction" } else { "predictions" };
    console.say(format!("wrote {count} {rows} to {}", output.display()));
    Ok(())
}

/// Refuses to write over an input, with the output or with what stands for it until it is complete.
fn refuse_outputs(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    let partial = PartialOutput::paths(output)?;
    for output in partial.iter().map(PathBuf::as_path).chain([output]) {
        atomic_file::refuse_input_as_output(output, inputs.iter().map(PathBuf::as_path))?;
    }
    Ok(())
}

/// The rows to predict, of `total` if their number is known.
fn range(args: &PredictArgs, total: Option<usize>) -> Result<Range<usize>> {
    match (args.shard, total) {
        (None, total) => Ok(0..total.unwrap_or(usize::MAX)),
        (Some(shard), Some(total)) if args.output.is_some() || args.output_jsonl.is_some() => {
            Ok(share(shard.index, shard.count, total))
        }
        (Some(_), Some(_)) => Err(Usage("--shard needs -o FILE: each part has an output of its own".into()).into()),
        (Some(_), None) => Err(Usage("--shard needs a file: the rows of a stream cannot be counted".into()).into()),
    }
}

/// The part of a rank that does not lead: it computes its share of each window that rank 0 reads.
fn help(args: &PredictArgs, origin: &Origin, device: &Device, group: &Group, console: Console) -> Result<()> {
    let loaded = Loaded::open_in(&args.run, args.precision, device, console)?;
    let decision = decision(args, &loaded.predictor.file)?;
    let batch_size = loaded.batch_size(&args.run);
    let source = origin.path();
    loop {
        let (before, window): (usize, Vec<Example>) = group.from_leader(|| bail!("rank 0 reads the rows"))?;
        if window.is_empty() {
            return Ok(());
        }
        let encoded = loaded.predictor.encode(&window, &source.display().to_string(), before)?;
        loaded.predictor.evaluate(&encoded, &decision, batch_size, group, |_| ())?;
    }
}

/// Everything that determines the bytes of the output.
fn job(
    loaded: &Loaded,
    precision: Option<Precision>,
    decision: &Decision,
    origin: &Origin,
    range: &Range<usize>,
    (columns, format, explains): (&Columns, Format, bool),
) -> Result<Value> {
    let mut classifier = loaded.predictor.trained.files();
    let matters = |name: &OsStr| name != "README.md" && (name != int8_file::NAME || precision == Some(Precision::Int8));
    classifier.retain(|path| path.is_file() && path.file_name().is_none_or(matters));
    classifier.sort();
    // Those in the manifest were just checked against it.
    let mut known = manifest::digests(&loaded.predictor.trained.adapter);
    let mut digest = |path: &PathBuf| {
        let is_inside = path.parent() == Some(&*loaded.predictor.trained.adapter);
        let name = path.file_name().and_then(OsStr::to_str).filter(|_| is_inside);
        name.and_then(|name| known.remove(name)).map_or_else(|| atomic_file::sha256(path), Ok)
    };
    let classifier = classifier.iter().map(&mut digest).collect::<Result<Vec<_>>>()?;
    let input = origin.file().map(atomic_file::sha256).transpose()?;
    let explains = if explains { " explained" } else { "" };
    let options = format!("{decision:?} {columns:?} {format:?} {range:?} {precision:?}{explains}");
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "classifier": atomic_file::hex(&Sha256::digest(classifier.concat())),
        "input": input,
        "options": atomic_file::hex(&Sha256::digest(options)),
    }))
}

fn say_renamed(labels: &[String], columns: &[String], console: Console) {
    for (label, column) in labels.iter().zip(columns).filter(|(label, column)| label != column) {
        console.say(format!("label `{label}` has the column `{column}`, because another one has its name"));
    }
}

/// The command that continues this output.
fn resume_command() -> String {
    let mut words: Vec<String> = std::env::args().skip(1).map(|word| quoted(&word)).collect();
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".to_owned());
    }
    format!("to resume it:\n  llmcls {}", words.join(" "))
}

/// Combines the flags with the classifier's own thresholds.
fn decision(args: &PredictArgs, file: &ClassifierFile) -> Result<Decision> {
    if let Some(count) = args.top_k {
        return Ok(Decision::Top(count));
    }
    if !args.threshold.is_empty() && file.model_config()?.problem_type == ProblemType::SingleLabel {
        return Err(Usage(
            "--threshold: thresholds do not apply to single_label_classification; --top_k N predicts the N most likely labels"
                .to_owned(),
        )
        .into());
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
    /// A Parquet file, which is complete only with its end.
    Parquet,
}

impl Format {
    /// The format for an output's extension. Standard output, devices, FIFOs and names without one get JSON lines.
    fn of(output: &Path) -> Result<Self> {
        let ending = output.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            None | Some("jsonl" | "ndjson") => Ok(Self::JsonLines),
            Some("csv") => Ok(Self::Separated(b',')),
            Some("tsv") => Ok(Self::Separated(b'\t')),
            Some("parquet") if !atomic_file::is_stream(output) => Ok(Self::Parquet),
            Some(_) if atomic_file::is_stream(output) => Ok(Self::JsonLines),
            Some(ending) => Err(Usage(format!(
                "{}: predictions are written as JSON lines (.jsonl) or as a table (.csv, .tsv, .parquet), not as .{ending}",
                output.display()
            ))
            .into()),
        }
    }
}

impl Format {
    /// Refuses flags that do not go with it.
    fn check(self, args: &PredictArgs) -> Result<()> {
        if args.explain && self != Self::JsonLines {
            return Err(Usage("--explain writes JSON lines alone: give an output that ends in .jsonl".into()).into());
        }
        if args.resume && self == Self::Parquet {
            return Err(Usage("--resume: a Parquet file cannot be gone on with; write .jsonl or .csv".into()).into());
        }
        Ok(())
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
    explains: bool,
    columns: Vec<String>,
    /// The rows of the input to predict.
    range: Range<usize>,
    group: &'a Group,
    console: Console,
}

impl PredictedRows<'_> {
    /// Predicts all rows into a file that `--resume` can continue; returns the number of rows.
    fn write_resumable(&self, input: Input, output: &Path, job: Value, resumes: bool) -> Result<usize> {
        let Some((mut partial, start)) = PartialOutput::open(output, job, resumes)? else {
            bail!("{}: the file is gone", output.display());
        };
        let skipped = match start {
            Start::New if resumes => {
                self.console.say("nothing to resume: starting at the first row");
                0
            }
            Start::New => 0,
            Start::Replaces => {
                self.console.warn("an earlier job was not finished; --resume would have continued its output");
                0
            }
            Start::After(rows) => {
                self.console.say(format!("resuming after {rows} rows"));
                rows
            }
        };
        let written = self.write_all(input, &mut partial, skipped, |partial, rows| {
            if partial.record(rows)? {
                interrupt::advise(resume_command());
            }
            Ok(())
        });
        match written {
            Ok(rows) => partial.finish().map(|()| rows),
            Err(error) => {
                partial.discard();
                Err(error.context(format!("{}: cannot write", output.display())))
            }
        }
    }

    /// Predicts all rows into a Parquet file; returns how many there were.
    fn write_parquet(&self, input: Input, output: &Path) -> Result<usize> {
        let mut count = 0;
        let labels = &self.loaded.predictor.file.labels;
        atomic_file::write_file(output, |writer| {
            let mut table = ParquetTable::new(writer, &self.columns)?;
            count = self.each_window(input, 0, |window, _| {
                for (example, row) in window.rows() {
                    table.push(&example.id, &names(labels, row.predicted), row.probabilities)?;
                }
                Ok(())
            })?;
            table.finish()
        })?;
        Ok(count)
    }

    /// Predicts the rows of the range after its first `skipped` as text; returns how many there are with those.
    fn write_all<W: Write>(
        &self,
        input: Input,
        writer: &mut W,
        skipped: usize,
        mut after_window: impl FnMut(&mut W, usize) -> Result<()>,
    ) -> Result<usize> {
        if let (Format::Separated(separator), 0) = (self.format, self.range.start + skipped) {
            writer.write_all(&record(separator, self.columns.iter().map(|name| without_formula(name)))?)?;
        }
        let rows = self.each_window(input, skipped, |window, rows| {
            for (example, row) in window.rows() {
                writer.write_all(&self.line(example, row)?)?;
            }
            after_window(writer, rows)
        })?;
        writer.flush()?;
        Ok(rows)
    }

    /// Predicts the rows of the range after its first `skipped`, a window at a time, and gives each window to `write`
    /// with how many rows of the range are done; returns how many there are with those.
    fn each_window(
        &self,
        mut input: Input,
        skipped: usize,
        mut write: impl FnMut(PredictedWindow<'_>, usize) -> Result<()>,
    ) -> Result<usize> {
        /// Rows that are skipped together.
        const SKIPPED: usize = 1024;
        let first = self.range.start + skipped;
        let mut rows = 0;
        while rows < first {
            let window = input.window((first - rows).min(SKIPPED))?;
            ensure!(!window.is_empty(), "{}: has only {rows} rows", self.input.display());
            rows += window.len();
        }
        let explainer = self.explains.then(|| Explainer::new(&self.loaded.predictor.classifier)).transpose()?;
        // A stream is answered at once: there is nothing to wait for.
        let is_counted = self.range.end < usize::MAX;
        let mut bar = is_counted.then(|| self.console.progress("predicting", self.range.len(), "rows"));
        if let Some(bar) = &mut bar {
            bar.start_at(skipped);
        }
        let mut size = WindowSize::new();
        // All texts, those that are empty, and those that are cut.
        let mut texts = [0; 3];
        loop {
            let window = match self.range.end - rows {
                0 => Vec::new(),
                left => input.window(left.min(size.rows))?,
            };
            let (_, window) = self.group.from_leader(|| Ok((rows, window)))?;
            if window.is_empty() {
                input.warn(self.console);
                let name = self.input.display().to_string();
                warnings::about_texts(&name, texts, self.loaded.predictor.file.limit(), self.console);
                break;
            }
            let window = self.predict(&window, rows, explainer.as_ref(), bar.as_mut())?;
            let count = window.examples.len();
            rows += count;
            let empty = window.examples.iter().filter(|example| example.text.trim().is_empty()).count();
            texts = [texts[0] + count, texts[1] + empty, texts[2] + window.cut];
            write(window, rows - self.range.start)?;
            size.adapt(count);
        }
        if let Some(bar) = bar {
            bar.finish();
        }
        Ok(rows - self.range.start)
    }

    fn predict<'e>(
        &self,
        examples: &'e [Example],
        before: usize,
        explainer: Option<&Explainer<'_>>,
        mut bar: Option<&mut ProgressMeter>,
    ) -> Result<PredictedWindow<'e>> {
        let predictor = &self.loaded.predictor;
        let samples = predictor.encode(examples, &self.input.display().to_string(), before)?;
        let evaluation = predictor
            .evaluate(&samples, &self.decision, self.batch_size, self.group, |count| {
                if let Some(bar) = &mut bar {
                    let rate = bar.rate(count);
                    bar.advance(count, || format!("{rate:.1} rows/s"));
                }
            })
            .map_err(|error| NotFinite::named(error, |row| examples[row].location(self.input, before + row)))?;
        let predictions = evaluation.predictions;
        let mut why = Vec::new();
        if let Some(explainer) = explainer {
            for (row, (example, sample)) in examples.iter().zip(&samples).enumerate() {
                interrupt::check()?;
                let labels = why::explained(&predictions.predicted[row], &predictions.probabilities[row]);
                let text = (example.text.as_str(), &sample.tokens);
                why.push(why::why(explainer, &predictor.encoder, text, (&predictor.file.labels, &labels))?);
            }
        }
        let cut = samples.iter().filter(|sample| sample.tokens.was_cut).count();
        Ok(PredictedWindow { examples, predictions, why, cut })
    }

    /// A row as a line of text.
    fn line(&self, example: &Example, row: PredictedRow<'_>) -> Result<Vec<u8>> {
        let labels = &self.loaded.predictor.file.labels;
        let predicted = names(labels, row.predicted);
        if let Format::Separated(separator) = self.format {
            let predicted = serde_json::to_string(&predicted)?;
            let cells = [without_formula(&example.id), predicted.into()];
            return record(separator, cells.into_iter().chain(row.probabilities.iter().map(|p| p.to_string().into())));
        }
        let mut line = serde_json::to_vec(&PredictionLine {
            id: &example.id,
            probs: row.probabilities,
            labels,
            predicted,
            targets: None,
            why: row.why.map(<[Why]>::to_vec),
        })?;
        line.push(b'\n');
        Ok(line)
    }
}

/// Rows with what was predicted for them.
struct PredictedWindow<'a> {
    examples: &'a [Example],
    predictions: Predictions,
    /// One a row, or none at all.
    why: Vec<Vec<Why>>,
    /// Number of texts that are cut.
    cut: usize,
}

/// What was predicted for a row.
#[derive(Clone, Copy)]
struct PredictedRow<'a> {
    predicted: &'a [bool],
    probabilities: &'a [f32],
    why: Option<&'a [Why]>,
}

impl PredictedWindow<'_> {
    fn rows(&self) -> impl Iterator<Item = (&Example, PredictedRow<'_>)> {
        self.examples.iter().enumerate().map(|(row, example)| {
            let predicted = PredictedRow {
                predicted: &self.predictions.predicted[row],
                probabilities: &self.predictions.probabilities[row],
                why: self.why.get(row).map(Vec::as_slice),
            };
            (example, predicted)
        })
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
        for name in ["a.json", "a.xlsx", "a.csv.gz", "a.txt", "a.html"] {
            let error = Format::of(Path::new(name)).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains(name), "{error}");
        }
    }
}
