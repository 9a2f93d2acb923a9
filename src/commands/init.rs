//! `llmcls init`: from one file of labelled texts to splits and a configuration that trains.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::prepare::{self, Flat};
use crate::atomic_file;
use crate::cli::{InitArgs, LabelsOfARow};
use crate::config::model::PoolingMode;
use crate::console::{Console, print};
use crate::data::labelled::LabelledRows;
use crate::data::recognise::{Asked, LabelForm, Recognised};
use crate::data::tokenize::TextEncoder;
use crate::exit::{Usage, quoted};
use crate::experiment::choices::{Choices, Facts};
use crate::experiment::starter_config::Starter;
use crate::experiment::{sentence_pooling, starter_report};
use crate::hub::model_files::ModelFiles;
use crate::kernels::device::Device;
use crate::model::config::BackboneConfig;
use crate::run::directory::CONFIG;

const SPLITS: [&str; 3] = ["train.csv", "validation.csv", "test.csv"];

/// Fewer rows cannot be split.
const FEWEST_ROWS: usize = 10;

/// Writes splits and a configuration, and prints what was found.
///
/// # Errors
/// If the file cannot be read or understood, or a file to write exists.
pub fn run(args: &InitArgs, device: &Device, console: Console) -> Result<()> {
    let directory = directory(args)?;
    refuse_existing(&directory)?;
    let asked = Asked {
        text: args.text.clone(),
        id: args.id.clone(),
        labels: args.labels.clone(),
        separator: args.label_separator.clone(),
        names: prepare::label_names(args.label_names.as_deref())?,
        quoting: args.quoting,
    };
    let input = Input::open(&args.data, &directory, &asked, console)?;
    let asked = match &input.labels {
        Some(labels) => Asked { labels: vec![labels.clone()], ..asked },
        None => asked,
    };
    let recognised = Recognised::of_file(input.path(), &asked).map_err(|error| input.explain(error))?;
    let mut rows = Rows::read(args, input, &directory, &recognised, console)?;
    let is_single_label = rows.settle_problem(args.problem_type, &recognised)?;
    let splits = rows.split(args.seed)?;
    let base = Base::find(&args.model_name, console)?;
    let lengths = lengths(&splits.training(&rows), base.as_ref())?;
    let choices = Choices::new(&Facts {
        rows: (splits.count(0, &rows), splits.count(1, &rows)),
        lengths: &lengths,
        base: base.as_ref().map(|base| &base.config),
        pooling: base.as_ref().and_then(|base| base.pooling),
        device,
        is_multi_label: !is_single_label,
    });
    let starter = Starter {
        source: &args.data,
        directory: &directory,
        dataset: &dataset(&args.data),
        model_name: &args.model_name,
        recognised: &recognised,
        is_multi_hot: matches!(&recognised.form, LabelForm::List { listing, .. } if listing.multi_hot.is_some()),
        is_single_label,
        rows: [0, 1, 2].map(|split| splits.count(split, &rows)),
        choices: &choices,
    };
    prepare::create_directory(&directory)?;
    splits.write(&rows, &recognised, &directory)?;
    atomic_file::write_bytes(&starter.path(CONFIG), starter.yaml().as_bytes())?;
    rows.warn(&recognised, console);
    let labels = splits.label_counts(&rows, recognised.labels.len());
    starter_report::doubts(&recognised.labels, &labels, starter.rows).iter().for_each(|doubt| console.warn(doubt));
    let (counts, is_exact) = (rows.data.label_counts(), base.is_some());
    print(&starter_report::found(&starter, &counts, &lengths, is_exact))?;
    print(&starter_report::labels(&recognised.labels, &labels, starter.rows))?;
    print(&format!(
        "\nwrote {}: {} to train, {} to validate, {} to test; {CONFIG}\nnext:\n\n  llmcls train --config {}\n",
        directory.display(),
        starter.rows[0],
        starter.rows[1],
        starter.rows[2],
        quoted(&starter.path(CONFIG).display().to_string())
    ))
}

/// Names flags of `init` in messages of the reader of training rows, which knows keys only.
fn flags_for_keys(text: &str) -> String {
    text.replace("data.label_separator", "--label_separator")
        .replace("data.labels_column", "--labels")
        .replace("data.label_columns", "--labels")
}

/// The directory for splits and configuration.
fn directory(args: &InitArgs) -> Result<PathBuf> {
    if args.data == Path::new("-") {
        let message = "init reads the rows several times, so it cannot read standard input; name a file";
        return Err(Usage(message.to_owned()).into());
    }
    let directory = args.out_dir.clone().unwrap_or_else(|| PathBuf::from(dataset(&args.data)));
    ensure!(
        !directory.exists() || directory.is_dir(),
        "{}: is a file; choose a directory with --out_dir DIR",
        directory.display()
    );
    Ok(directory)
}

/// The data set's name: the file's, without its extension.
fn dataset(data: &Path) -> String {
    let name = data.file_stem().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "data".to_owned())
}

fn refuse_existing(directory: &Path) -> Result<()> {
    for path in SPLITS.iter().chain([&CONFIG]).map(|name| directory.join(name)) {
        ensure!(
            fs::symlink_metadata(&path).is_err(),
            "{}: already exists, and init replaces nothing; choose another directory with --out_dir DIR, or remove it",
            path.display()
        );
    }
    Ok(())
}

/// A file, or the flat rows of an export.
struct Input {
    source: PathBuf,
    flat: Option<Flat>,
    /// The column that an export's labels are in.
    labels: Option<String>,
}

impl Input {
    fn open(source: &Path, directory: &Path, asked: &Asked, console: Console) -> Result<Self> {
        let flat = Flat::of_export(source, asked.labels.first().map(String::as_str), directory, console)?;
        let labels = flat.as_ref().map(|flat| flat.labels_column.clone());
        Ok(Self { source: source.to_owned(), flat, labels })
    }

    fn path(&self) -> &Path {
        self.flat.as_ref().map_or(&self.source, |flat| flat.file.path())
    }

    /// A message that names the file that the user gave, and flags.
    fn name(&self, message: &str) -> String {
        let message = flags_for_keys(message);
        self.flat.as_ref().map_or_else(|| message.clone(), |flat| flat.file.name_target(&message))
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let message = format!("{error:#}");
        let named = self.name(&message);
        // One that the user asked for, such as Ctrl-C, keeps its kind.
        if named == message { error } else { anyhow::anyhow!(named) }
    }
}

/// All rows: those to split, and splits that are ready.
struct Rows {
    data: LabelledRows,
    /// Ready validation and test rows, if given.
    ready: [Option<LabelledRows>; 2],
    /// What was given: the data, then validation and test. Flat rows of exports are read until all is written.
    inputs: Vec<Input>,
}

impl Rows {
    fn read(
        args: &InitArgs,
        input: Input,
        directory: &Path,
        recognised: &Recognised,
        console: Console,
    ) -> Result<Self> {
        let read = |input: &Input| LabelledRows::read(input.path(), recognised).map_err(|error| input.explain(error));
        let mut data = read(&input)?;
        data.look_for_repetitions();
        let asked = Asked { labels: args.labels.clone(), ..Asked::default() };
        let mut inputs = vec![input];
        let mut ready = |path: &Option<PathBuf>, flag: &str| -> Result<Option<LabelledRows>> {
            let Some(path) = path else { return Ok(None) };
            let input = Input::open(path, directory, &asked, console)?;
            let rows = read(&input).with_context(|| format!("{flag} needs the columns of {}", args.data.display()))?;
            inputs.push(input);
            Ok(Some(rows))
        };
        let ready = [ready(&args.val, "--val")?, ready(&args.test, "--test")?];
        Ok(Self { data, ready, inputs })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut LabelledRows> {
        std::iter::once(&mut self.data).chain(self.ready.iter_mut().flatten())
    }

    /// Decides whether each row has one label, and leaves out rows that then have none.
    fn settle_problem(&mut self, asked: Option<LabelsOfARow>, recognised: &Recognised) -> Result<bool> {
        /// If each row names one label and a smaller share of rows than this names none, those rows count as
        /// unlabelled.
        const MOST_UNLABELLED: f64 = 0.2;
        let counts = self.data.label_counts();
        let names_one = matches!(recognised.form, LabelForm::List { .. }) && counts.most == 1;
        let most_have_one = names_one && (counts.without as f64) < MOST_UNLABELLED * self.data.count() as f64;
        let has_one = counts.fewest == 1 && counts.most == 1 || most_have_one;
        let is_single = asked.map_or(has_one && recognised.labels.len() > 1, |asked| asked == LabelsOfARow::Single);
        if is_single {
            ensure!(
                recognised.labels.len() > 1,
                "there is only one label, `{}`; a classifier needs at least two",
                recognised.labels[0]
            );
            self.all().try_for_each(LabelledRows::keep_single_labels)?;
        }
        Ok(is_single)
    }

    /// Divides the rows into the splits that were not given.
    fn split(&self, seed: u32) -> Result<Splits> {
        let kept = self.data.count();
        ensure!(
            kept >= FEWEST_ROWS,
            "{}: has {kept} labelled rows; at least {FEWEST_ROWS} are needed, and a few hundred make a useful classifier",
            self.inputs[0].source.display()
        );
        let (shares, of_part) = match &self.ready {
            [None, None] => (vec![0.8, 0.1, 0.1], vec![0, 1, 2]),
            [Some(_), None] => (vec![0.9, 0.1], vec![0, 2]),
            [None, Some(_)] => (vec![0.9, 0.1], vec![0, 1]),
            [Some(_), Some(_)] => (vec![1.0], vec![0]),
        };
        let parts = self.data.split(&shares, seed);
        let splits = Splits(parts.into_iter().map(|part| part.map(|part| of_part[part])).collect());
        for (split, name) in ["training", "validation", "test"].into_iter().enumerate() {
            ensure!(
                splits.count(split, self) > 0,
                "no row is left for {name}: too few rows, or too many have the same text"
            );
        }
        Ok(splits)
    }

    fn warn(&self, recognised: &Recognised, console: Console) {
        let doubts = self.ready.iter().flatten().chain([&self.data]).flat_map(|rows| &rows.doubts);
        let named = |doubt: &String| self.inputs.iter().fold(doubt.clone(), |text, input| input.name(&text));
        recognised.doubts.iter().chain(doubts).for_each(|doubt| console.warn(named(doubt)));
        for (rows, input) in self.ready.iter().flatten().zip(&self.inputs[1..]) {
            let shared = rows.shared_with(&self.data);
            if shared > 0 {
                let (ready, data) = (input.source.display(), self.inputs[0].source.display());
                console.warn(format!("{shared} texts of {ready} are also in {data}: their scores are too good"));
            }
        }
    }
}

/// The split of each row of the data: 0 trains, 1 validates, 2 tests.
struct Splits(Vec<Option<usize>>);

impl Splits {
    fn examples<'a>(
        &'a self,
        split: usize,
        rows: &'a Rows,
    ) -> Box<dyn Iterator<Item = &'a crate::data::table::Example> + 'a> {
        match split.checked_sub(1).and_then(|ready| rows.ready[ready].as_ref()) {
            Some(ready) => Box::new(ready.kept().map(|(_, example)| example)),
            None => Box::new(rows.data.kept().filter(move |(row, _)| self.0[*row] == Some(split)).map(|(_, row)| row)),
        }
    }

    fn count(&self, split: usize, rows: &Rows) -> usize {
        self.examples(split, rows).count()
    }

    fn training<'a>(&'a self, rows: &'a Rows) -> Vec<&'a str> {
        self.examples(0, rows).map(|example| example.text.as_str()).collect()
    }

    /// Positive rows of each label in the three splits.
    fn label_counts(&self, rows: &Rows, labels: usize) -> Vec<[usize; 3]> {
        let mut counts = vec![[0; 3]; labels];
        for split in 0..3 {
            for example in self.examples(split, rows) {
                for (count, _) in counts.iter_mut().zip(&example.labels).filter(|(_, label)| **label > 0.5) {
                    count[split] += 1;
                }
            }
        }
        counts
    }

    fn write(&self, rows: &Rows, recognised: &Recognised, directory: &Path) -> Result<()> {
        for (split, name) in SPLITS.iter().enumerate() {
            let output = directory.join(name);
            match split.checked_sub(1).and_then(|ready| rows.ready[ready].as_ref()) {
                Some(ready) => ready.write(recognised, &|_| true, &output)?,
                None => rows.data.write(recognised, &|row| self.0[row] == Some(split), &output)?,
            };
        }
        Ok(())
    }
}

/// The parts of a base that `init` needs: everything but the weights.
struct Base {
    config: BackboneConfig,
    files: ModelFiles,
    pooling: Option<PoolingMode>,
}

impl Base {
    /// The base's configuration and tokenizer; `None` if the Hub cannot give them now.
    fn find(name: &str, console: Console) -> Result<Option<Self>> {
        let find = || -> Result<Self> {
            // The Hub's weights are fetched when they are needed.
            let files = match ModelFiles::find(name, None, !ModelFiles::is_on_the_hub(name), console) {
                Ok(files) => files,
                Err(error) => {
                    let Ok(files) = ModelFiles::find(name, None, false, console) else { return Err(error) };
                    console.warn(format!(
                        "{error:#}\ncopy the weights there before you train, or train a model of random weights: --set \
                         model.random_init=true"
                    ));
                    files
                }
            };
            let config = BackboneConfig::from_file(&files.config)?;
            let pooling = sentence_pooling::of_base(&files, &config, console)?;
            Ok(Self { config, files, pooling })
        };
        match find() {
            Ok(base) => Ok(Some(base)),
            Err(error) if ModelFiles::is_on_the_hub(name) => {
                console.warn(format!(
                    "{error:#}\nlengths are estimated from words. Without the Hub, give a directory with the files of a \
                     base: `--model_name DIR` here, or `--set model.model_name=DIR` when you train"
                ));
                Ok(None)
            }
            Err(error) => Err(error.context("--model_name")),
        }
    }
}

/// Tokens of a sample of texts before cutting, sorted; estimated from words where there is no tokenizer.
fn lengths(texts: &[&str], base: Option<&Base>) -> Result<Vec<usize>> {
    const SAMPLE: usize = 4096;
    /// Longer than any text that is worth telling apart.
    const UNCUT: usize = 1 << 20;
    let sample: Vec<&str> = texts.iter().step_by(texts.len().div_ceil(SAMPLE).max(1)).copied().collect();
    let mut lengths: Vec<usize> = match base {
        Some(Base { config, files, .. }) => {
            let encoder = TextEncoder::of_model(&files.tokenizer, &files.config, UNCUT, config.empty_token)
                .with_context(|| format!("{}: cannot use the tokenizer", files.name))?;
            encoder.encode(sample)?.iter().map(|encoded| encoded.token_ids.len()).collect()
        }
        // English has about four tokens in three words, scripts without spaces one a character or two; rather too long
        // than too short.
        None => sample.iter().map(|text| (text.split_whitespace().count() * 2).max(text.len() / 4) + 2).collect(),
    };
    lengths.sort_unstable();
    Ok(lengths)
}
