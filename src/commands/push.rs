//! `llmcls push`: a classifier into a repository of the Hugging Face Hub, in one commit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::export::Export;
use super::loaded::Loaded;
use crate::atomic_file;
use crate::cli::PushArgs;
use crate::console::{Console, bytes, print};
use crate::hub::upload::{LocalFile, ModelRepo, check_name};
use crate::kernels::device::Device;
use crate::run::model_weights::SHARD_BYTES;
use crate::run::publication::{PrivatePaths, Publication, REPORT};
use crate::run::{adapter, model_card, model_weights};

/// Pushes.
///
/// # Errors
/// If the classifier cannot be used, a file would give away a path of this machine, or the Hub refuses.
pub fn run(args: &PushArgs, console: Console) -> Result<()> {
    check_name(&args.repo)?;
    let loaded = Loaded::open(&args.run, &Device::cpu(), console)?;
    let token = loaded.token.as_ref().map(|token| token.secret());
    // Before the work of merging.
    let repo = if args.dry_run { None } else { Some(ModelRepo::new(&args.repo, token, console)?) };
    let staged = Staged::new();
    let is_merged = args.merged || loaded.predictor.trained.is_complete();
    stage(args, &loaded, &staged.0, is_merged, console)?;
    let files = listed(&staged.0)?;
    let total: u64 = files.iter().map(|file| file.size).sum();
    let Some(repo) = repo else {
        let lines = files.iter().map(|file| format!("{:>10}  {}\n", bytes(file.size), file.name));
        let visibility = if args.private { "private" } else { "public" };
        print(&lines.collect::<String>())?;
        console.say(format!("--dry_run: {} in all for the {visibility} repository {}", bytes(total), args.repo));
        return Ok(());
    };
    let message = format!("Upload a classifier with llmcls {}", env!("CARGO_PKG_VERSION"));
    match repo.push(&files, args.private, |name| belongs_to_other_form(name, is_merged), &message)? {
        Some(commit) => console.say(format!("pushed {} in one commit: {commit}", bytes(total))),
        None => console.say(format!("{} has these files as they are: nothing to do", args.repo)),
    }
    Ok(())
}

/// Fills a directory with what goes to the Hub.
fn stage(args: &PushArgs, loaded: &Loaded, directory: &Path, is_merged: bool, console: Console) -> Result<()> {
    let trained = &loaded.predictor.trained;
    let run = trained.config.as_deref().and_then(Path::parent).filter(|_| !args.no_report);
    let report = run.map(|run| run.join(REPORT));
    let publication = Publication {
        adapter: &trained.adapter,
        file: &loaded.predictor.file,
        report: report.as_deref(),
        private: private_paths(loaded),
    };
    if is_merged {
        let export = Export { loaded, dtype: args.dtype.map(Into::into), shard_bytes: SHARD_BYTES };
        export.write(directory, Console::new(true))?;
    } else {
        atomic_file::write_directory(directory, |inside| {
            if !publication.write_adapter(inside)? {
                console.warn(
                    "the base is not on the Hub under this name, so others cannot load the adapter without it; --merged \
                     uploads a complete model",
                );
            }
            Ok(())
        })?;
    }
    publication.write_report(directory)?;
    publication.check(directory)
}

/// Paths that this classifier's files may name.
fn private_paths(loaded: &Loaded) -> PrivatePaths {
    let trained = &loaded.predictor.trained;
    let mut paths = vec![trained.adapter.clone(), trained.home.clone()];
    let base = Path::new(&loaded.base.files.name);
    // A name on the Hub is no path, even if a directory here is called so.
    if base.is_dir() && loaded.base.files.commit.is_none() {
        paths.push(base.to_owned());
    }
    paths.extend(loaded.base.files.config.parent().map(Path::to_owned));
    if let Some(config) = &loaded.config {
        let data = &config.data;
        paths.extend(
            [Some(&data.train_csv), data.val_csv.as_ref(), data.test_csv.as_ref()].into_iter().flatten().cloned(),
        );
        paths.extend(config.model.init_adapter.clone());
        paths.push(config.exp.output_root.clone());
    }
    PrivatePaths::new(paths)
}

/// The files, the card first.
fn listed(directory: &Path) -> Result<Vec<LocalFile>> {
    let mut names = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect())
        .map(|names: Vec<String>| names)
        .with_context(|| format!("{}: cannot read", directory.display()))?;
    names.sort_by_key(|name| (name != model_card::NAME, name.clone()));
    names.iter().map(|name| LocalFile::new(directory, name)).collect()
}

/// Files of an adapter where a complete model is pushed, and the other way round: transformers would read both.
fn belongs_to_other_form(name: &str, is_merged: bool) -> bool {
    let is_of_adapter = [adapter::CONFIG, adapter::WEIGHTS].contains(&name);
    let is_weights = name.starts_with("model") && name.ends_with(".safetensors") || name == model_weights::INDEX;
    match is_merged {
        // Shards of another number, too.
        true => is_of_adapter || is_weights,
        false => is_weights || name == "config.json",
    }
}

/// A directory that goes when this does.
struct Staged(PathBuf);

impl Staged {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("llmcls-push-{}", std::process::id())))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What cannot be removed lies in the directory for what is temporary.
        let _ = fs::remove_dir_all(&self.0);
    }
}
