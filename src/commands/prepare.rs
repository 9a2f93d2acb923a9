//! `llmcls prepare`: training files with one column of 0 and 1 for each label, made of rows that list
//! their labels. Rows are streamed: memory holds one byte a row and the labels' counts.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::RepoType;
use serde_json::json;

use crate::atomic_file::{self, Temporary};
use crate::cli::{AmazoncatArgs, DeriveFrom, ListsArgs, PrepareSource, Split};
use crate::console::Console;
use crate::data::exports;
use crate::data::formats::{Quoting, Rows};
use crate::data::label_cell::LabelCell;
use crate::data::label_columns::{LabelColumn, LabelCounts};
use crate::data::list_column::{ListColumn, Listing};
use crate::data::sampler::epoch_order;
use crate::data::table::{abridged, join_fields, label_cell};
use crate::hub::cache::HubRepo;
use crate::run::records::write_json;

/// Prepares.
///
/// # Errors
/// If rows cannot be got, read or written; a file is written whole or not at all.
pub fn run(source: &PrepareSource, console: Console) -> Result<()> {
    match source {
        PrepareSource::Amazoncat(args) => amazoncat(args, console),
        PrepareSource::Lists(args) => lists(args, console),
    }
}

/// A request: the rows, and what `prepare` makes from them.
struct Preparation {
    /// Rows that are split, and rows that are the test split as they are.
    pool: Vec<PathBuf>,
    test: Vec<PathBuf>,
    /// Parts of the pool that go to validation and to test.
    validation_size: f64,
    test_size: f64,
    seed: u32,
    quoting: Quoting,
    labels_column: String,
    /// `None` to detect it from the whole column.
    separator: Option<String>,
    /// Files that the user named and that no output may replace.
    sources: Vec<PathBuf>,
    overwrite: bool,
    /// Columns that are kept; none: all but the labels'.
    kept: Option<Vec<String>>,
    /// Join the kept columns but the first into one column `text`.
    joins_text: bool,
    top_k: Option<usize>,
    counted: Vec<Split>,
    keeps_all_rows: bool,
    prefix: String,
    names: Vec<String>,
    outputs: [PathBuf; 3],
    mapping: PathBuf,
}

fn lists(args: &ListsArgs, console: Console) -> Result<()> {
    let common = &args.common;
    let file = |name: &str| args.out_dir.join(name);
    let flat = Flat::of_export(&args.input, args.labels_column.as_deref(), &args.out_dir, console)?;
    let (input, labels_column) = match &flat {
        Some(flat) => (flat.file.path().to_owned(), flat.labels_column.clone()),
        None => (args.input.clone(), labels_column(args.labels_column.as_ref(), &args.input, common.quoting)?),
    };
    let preparation = Preparation {
        pool: vec![input],
        test: Vec::new(),
        validation_size: common.val_size,
        test_size: args.test_size,
        seed: common.seed,
        quoting: common.quoting,
        labels_column,
        separator: args.label_separator.clone(),
        sources: [&args.input].into_iter().chain(&common.label_names).cloned().collect(),
        overwrite: common.overwrite,
        kept: None,
        joins_text: false,
        top_k: args.top_k,
        counted: vec![Split::Train],
        keeps_all_rows: common.keep_all_rows || args.top_k.is_none(),
        prefix: common.prefix.clone(),
        names: label_names(common.label_names.as_deref())?,
        outputs: [file("train.csv"), file("validation.csv"), file("test.csv")],
        mapping: file("labels_mapping.json"),
    };
    preparation.make(console).map_err(|error| match &flat {
        Some(flat) => flat.file.name_target_in(error),
        None => error,
    })
}

fn amazoncat(args: &AmazoncatArgs, console: Console) -> Result<()> {
    let (pool, test) = match &args.input_dir {
        Some(directory) => local_files(directory)?,
        None => hub_files(&args.dataset, console)?,
    };
    ensure!(
        !pool.is_empty(),
        "no file of training rows; its name must contain `train` and end in .parquet, .jsonl or .json"
    );
    let labels_column = labels_column(args.labels_column.as_ref(), &pool[0], args.common.quoting)?;
    let (common, k) = (&args.common, args.top_k);
    let file = |name: String| args.out_dir.join(name);
    Preparation {
        sources: pool.iter().chain(&test).chain(&common.label_names).cloned().collect(),
        overwrite: common.overwrite,
        pool,
        test,
        validation_size: common.val_size,
        test_size: 0.0,
        seed: common.seed,
        quoting: common.quoting,
        labels_column,
        separator: None,
        kept: Some(["uid", "title", "content"].map(str::to_owned).to_vec()),
        joins_text: args.no_title_content,
        top_k: Some(k),
        counted: match args.derive_topk_from {
            DeriveFrom::Train => vec![Split::Train],
            DeriveFrom::TrainAndTest => vec![Split::Train, Split::Test],
            DeriveFrom::All => vec![Split::Train, Split::Validation, Split::Test],
        },
        keeps_all_rows: common.keep_all_rows,
        prefix: common.prefix.clone(),
        names: label_names(common.label_names.as_deref())?,
        outputs: ["train", "validation", "test"].map(|split| file(format!("{split}_top{k}.csv"))),
        mapping: file(format!("top{k}_labels_mapping.json")),
    }
    .make(console)
}

/// The column that lists labels: the one that is asked for, or the first of the usual names.
fn labels_column(asked: Option<&String>, path: &Path, quoting: Quoting) -> Result<String> {
    const USUAL: [&str; 5] = ["labels", "target_ind", "label", "targets", "tags"];
    if let Some(column) = asked {
        return Ok(column.clone());
    }
    let rows = Rows::open(path, quoting)?;
    let usual = USUAL.into_iter().find(|name| rows.columns().iter().any(|column| column == name));
    usual.map(str::to_owned).with_context(|| {
        format!("{}: --labels_column is needed; the rows have {}", path.display(), abridged(rows.columns()))
    })
}

/// The rows of an export, in a file that is removed when they have been read.
pub(super) struct Flat {
    pub(super) file: Temporary,
    pub(super) labels_column: String,
}

impl Flat {
    /// Writes the rows of an export into `directory`; `None` if the file is no export.
    pub(super) fn of_export(
        input: &Path,
        question: Option<&str>,
        directory: &Path,
        console: Console,
    ) -> Result<Option<Self>> {
        let Some(tool) = exports::recognise(input) else { return Ok(None) };
        create_directory(directory)?;
        let file = Temporary::made_of(input, directory, "jsonl");
        let mut flat = Self { file, labels_column: String::new() };
        let cannot_write = || format!("{}: cannot write", directory.display());
        let mut writer = BufWriter::new(File::create(flat.file.path()).with_context(cannot_write)?);
        let flattened = exports::flatten(input, tool, question, &mut writer)?;
        writer.flush().with_context(cannot_write)?;
        flattened.notes.iter().for_each(|note| console.say(note));
        flattened.doubts.iter().for_each(|doubt| console.warn(doubt));
        flat.labels_column = flattened.labels_column;
        Ok(Some(flat))
    }
}

pub(super) fn create_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("{}: cannot create", directory.display()))
}

/// Files of rows, those for training and those for testing, by their names.
fn by_split(names: impl IntoIterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let is_rows = |name: &String| {
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ["parquet", "jsonl", "ndjson", "json", "csv"].contains(&ending)
    };
    let mut names: Vec<String> = names.into_iter().filter(is_rows).collect();
    names.sort_unstable();
    let of = |word: &str| names.iter().filter(|name| file_name(name).contains(word)).cloned().collect();
    (of("train"), of("test"))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn local_files(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}: cannot read", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let (train, test) = by_split(names.collect::<Result<Vec<String>>>()?);
    let paths = |names: Vec<String>| names.into_iter().map(|name| directory.join(name)).collect();
    Ok((paths(train), paths(test)))
}

fn hub_files(dataset: &str, console: Console) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let repo = HubRepo::new(dataset, RepoType::Dataset, None, console)?;
    let context = || format!("{dataset}: cannot get the data set; --input_dir reads local files of the same form");
    let (train, test) = by_split(repo.list().with_context(context)?);
    let fetch = |names: Vec<String>| -> Result<Vec<PathBuf>> {
        let file = |name: &String| repo.file(name)?.with_context(|| format!("`{name}` is listed but missing"));
        names.iter().map(|name| file(name).with_context(context)).collect()
    };
    let fetched = (fetch(train)?, fetch(test)?);
    repo.publish().with_context(context)?;
    Ok(fetched)
}

/// Names of labels that are numbers: a JSON list, or one a line.
pub(super) fn label_names(path: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).with_context(|| format!("{}: not a list of names", path.display()));
    }
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// The current row of a file.
struct Row<'a> {
    rows: &'a Rows,
    labels: usize,
    /// Where the columns stand that are kept.
    kept: &'a [usize],
}

/// A writer for each split that has rows.
type Writers<'a> = [Option<csv::Writer<&'a mut BufWriter<File>>>; 3];

impl Preparation {
    fn make(&self, console: Console) -> Result<()> {
        for (size, flag) in [(self.validation_size, "--val_size"), (self.test_size, "--test_size")] {
            ensure!((0.0..1.0).contains(&size), "{flag} is {size}, expected a share from 0 to 1");
        }
        ensure!(self.validation_size + self.test_size < 1.0, "--val_size and --test_size leave no row to train on");
        ensure!(self.top_k != Some(0), "--top_k is 0, expected at least 1");
        let (splits, listing) = self.splits(console)?;
        self.refuse_outputs(&splits)?;
        let mut counts = LabelCounts::default();
        self.each(&splits, &[], "counting labels", console, |row, split| {
            if self.counted.contains(&split) {
                let cell = label_cell(row.rows, row.labels)?;
                counts.add(&self.labels(&listing, &cell));
            }
            Ok(())
        })?;
        let columns = counts.columns(self.top_k, &self.prefix, &self.names);
        ensure!(!columns.is_empty(), "column `{}` contains no label", self.labels_column);
        create_directory(self.mapping.parent().unwrap_or(Path::new(".")))?;
        let written = self.write(&splits, &listing, &columns, console)?;
        write_json(&self.mapping, &json!({"labels_column": self.labels_column, "labels": columns}))?;
        for (path, count) in self.outputs.iter().zip(written) {
            if count > 0 {
                console.say(format!("wrote {count} rows to {}", path.display()));
            }
        }
        let names: Vec<&str> = columns.iter().map(|column| column.column.as_str()).collect();
        console.say(format!("{} labels, in {}: {}", columns.len(), self.mapping.display(), abridged(&names)));
        Ok(())
    }

    /// Refuses to write over an input, and over any file without `--overwrite`.
    fn refuse_outputs(&self, splits: &[Split]) -> Result<()> {
        let is_used = |split: Split| splits.contains(&split);
        let outputs = [Split::Train, Split::Validation, Split::Test].into_iter().filter(|&split| is_used(split));
        for path in outputs.map(|split| &self.outputs[split as usize]).chain([&self.mapping]) {
            atomic_file::refuse_input_as_output(path, self.sources.iter().map(PathBuf::as_path))?;
            ensure!(
                self.overwrite || fs::symlink_metadata(path).is_err(),
                "{}: exists; --overwrite replaces it, or choose another --out_dir",
                path.display()
            );
        }
        Ok(())
    }

    /// The labels of a cell.
    fn labels<'a>(&'a self, listing: &Listing, cell: &'a LabelCell) -> Vec<&'a str> {
        match listing.flags(cell) {
            Some(flags) => {
                self.names.iter().zip(flags).filter(|(_, flag)| *flag).map(|(name, _)| name.as_str()).collect()
            }
            None => listing.labels(cell),
        }
    }

    /// The split of each row: by a seeded permutation for the pool, the test split for the others. Also how
    /// the column lists labels.
    fn splits(&self, console: Console) -> Result<(Vec<Split>, Listing)> {
        let mut lengths = [0, 0];
        let mut found = ListColumn::default();
        for (length, paths) in lengths.iter_mut().zip([&self.pool, &self.test]) {
            for path in paths {
                if self.sources.contains(path) {
                    console.say(format!("reading {}", path.display()));
                }
                let rows = Rows::open(path, self.quoting)?;
                let column = rows.find(&self.labels_column)?;
                let mut rows = rows.only(&[column])?;
                while rows.advance()? {
                    found.add(&label_cell(&rows, column)?, || rows.location());
                    *length += 1;
                }
            }
        }
        let [pool, test] = lengths;
        ensure!(pool > 0, "there are no rows");
        let findings = found.find((&self.labels_column, "--label_separator"), self.separator.as_deref(), &[])?;
        findings.listing.check_names(&self.labels_column, &self.names, "--label_names FILE")?;
        console.say(format!("labels in `{}` are read {}", self.labels_column, findings.listing.describe()));
        findings.doubts.iter().for_each(|doubt| console.warn(doubt));
        let mut splits = vec![Split::Train; pool];
        let part = |size: f64| (pool as f64 * size).round() as usize;
        let (validation, tested) = (part(self.validation_size), part(self.test_size));
        let order = epoch_order(pool, self.seed, 0, true);
        for &row in &order[..validation] {
            splits[row] = Split::Validation;
        }
        for &row in &order[validation..validation + tested] {
            splits[row] = Split::Test;
        }
        splits.extend(std::iter::repeat_n(Split::Test, test));
        Ok((splits, findings.listing))
    }

    /// Calls `f` with the labels and these other columns of every row, and the row's split.
    fn each(
        &self,
        splits: &[Split],
        kept: &[String],
        title: &str,
        console: Console,
        mut f: impl FnMut(&Row<'_>, Split) -> Result<()>,
    ) -> Result<()> {
        let mut bar = console.progress(title, splits.len(), "rows");
        let mut splits = splits.iter();
        for path in self.pool.iter().chain(&self.test) {
            let rows = Rows::open(path, self.quoting)?;
            let labels = rows.find(&self.labels_column)?;
            let kept = kept.iter().map(|column| rows.find(column)).collect::<Result<Vec<usize>>>()?;
            let places: Vec<usize> = kept.iter().copied().chain([labels]).collect();
            let mut rows = rows.only(&places)?;
            while rows.advance()? {
                let split = splits.next().with_context(|| format!("{}: has grown", path.display()))?;
                f(&Row { rows: &rows, labels, kept: &kept }, *split)?;
                bar.advance(1, String::new);
            }
        }
        bar.finish();
        Ok(())
    }

    /// Writes the files of the splits that have rows; returns how many each got.
    fn write(
        &self,
        splits: &[Split],
        listing: &Listing,
        columns: &[LabelColumn],
        console: Console,
    ) -> Result<[usize; 3]> {
        let kept = match &self.kept {
            Some(kept) => kept.clone(),
            None => {
                let rows = Rows::open(&self.pool[0], self.quoting)?;
                rows.columns().iter().filter(|column| **column != self.labels_column).cloned().collect()
            }
        };
        if let Some(column) = columns.iter().find(|column| kept.contains(&column.column)) {
            bail!("the label `{}` would have the name of another column; set --prefix", column.column);
        }
        let mut written = [0; 3];
        let outputs = [Split::Train, Split::Validation, Split::Test].into_iter().filter(|split| splits.contains(split));
        let outputs: Vec<Split> = outputs.collect();
        self.write_into(&outputs, [None, None, None], &mut |mut writers| {
            for writer in writers.iter_mut().flatten() {
                self.write_header(writer, &kept, columns)?;
            }
            self.each(splits, &kept, "writing", console, |row, split| {
                let cell = label_cell(row.rows, row.labels)?;
                let labels: HashSet<&str> = self.labels(listing, &cell).into_iter().collect();
                let flags: Vec<bool> = columns.iter().map(|column| labels.contains(column.label.as_str())).collect();
                if self.keeps_all_rows || flags.contains(&true) {
                    written[split as usize] += 1;
                    let writer = writers[split as usize].as_mut().context("a split with rows has a file")?;
                    self.write_row(writer, row, &flags)?;
                }
                Ok(())
            })?;
            writers.iter_mut().flatten().try_for_each(csv::Writer::flush).context("cannot write")
        })?;
        for split in outputs {
            // All its rows had none of the labels.
            if written[split as usize] == 0 {
                let _ = fs::remove_file(&self.outputs[split as usize]);
            }
        }
        Ok(written)
    }

    /// Opens the files of these splits, all of which appear when `write` is done, or none.
    fn write_into<'a>(
        &self,
        outputs: &[Split],
        writers: Writers<'a>,
        write: &mut dyn for<'b> FnMut(Writers<'b>) -> Result<()>,
    ) -> Result<()> {
        let Some((&split, others)) = outputs.split_first() else { return write(writers) };
        atomic_file::write_file(&self.outputs[split as usize], |file| {
            let mut writers: Writers<'_> = writers;
            writers[split as usize] = Some(csv::Writer::from_writer(file));
            self.write_into(others, writers, write)
        })
    }

    fn write_header(
        &self,
        writer: &mut csv::Writer<&mut BufWriter<File>>,
        kept: &[String],
        columns: &[LabelColumn],
    ) -> Result<()> {
        let text = "text".to_owned();
        let first: Vec<&String> = if self.joins_text { vec![&kept[0], &text] } else { kept.iter().collect() };
        let header = first.into_iter().chain(columns.iter().map(|column| &column.column));
        writer.write_record(header).context("cannot write")
    }

    fn write_row(&self, writer: &mut csv::Writer<&mut BufWriter<File>>, row: &Row<'_>, flags: &[bool]) -> Result<()> {
        let mut cells = Vec::with_capacity(row.kept.len() + flags.len());
        for &column in row.kept {
            cells.push(row.rows.text(column)?);
        }
        if self.joins_text {
            let text = join_fields(&cells[1..]);
            cells.truncate(1);
            cells.push(text.into());
        }
        cells.extend(flags.iter().map(|&flag| if flag { "1" } else { "0" }.into()));
        writer.write_record(cells.iter().map(|cell| cell.as_bytes())).context("cannot write")
    }
}
