//! The classifiers that are served, by name; each base is loaded once.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use utoipa::ToSchema;

use super::compute::{self, Load, Loaded, Order, Workshop};
use super::metrics::Metrics;
use super::queue::{ModelId, Queue, Room};
use super::settings::{OpenDevice, Source};
use super::source::Located;
use crate::console::Console;
use crate::evaluation::decide;
use crate::metrics::Decision;
use crate::model::classifier::Problem;
use crate::predictor::TextReader;

/// A classifier that is served.
pub(super) struct Served {
    pub(super) id: ModelId,
    pub(super) info: ModelInfo,
    pub(super) reader: TextReader,
    pub(super) queue: Arc<Queue<Order>>,
    /// Columns that make a text, if it is of several.
    pub(super) text_fields: Option<Vec<String>>,
    pub(super) text_column: String,
    decision: Decision,
    problem: Problem,
    base_key: String,
}

/// A classifier as `/info` shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ModelInfo {
    /// By which requests name it.
    #[schema(example = "debtags")]
    pub(super) name: String,
    /// In the order of the probabilities.
    pub(super) labels: Vec<String>,
    /// One a label: it is predicted if its probability is above. Of a single-label classifier the most likely label
    /// is predicted.
    pub(super) thresholds: Vec<f32>,
    /// `multi_label_classification` or `single_label_classification`.
    pub(super) problem_type: String,
    /// Tokens after which a text is cut.
    pub(super) max_length: usize,
    /// The name of the base.
    pub(super) base: String,
    /// The revision of the base, if it is of a hub.
    pub(super) revision: Option<String>,
    /// The commit of the base, if it is of a hub.
    pub(super) commit: Option<String>,
    /// The type in which the base's weights are stored.
    pub(super) torch_dtype: String,
    /// In what products are computed.
    pub(super) compute: String,
    /// Where it computes.
    pub(super) device: String,
    /// Bytes that this classifier added.
    pub(super) adapter_bytes: usize,
    /// Bytes of the base, which classifiers share.
    pub(super) base_bytes: usize,
}

impl Served {
    /// The labels that probabilities predict, one a label.
    pub(super) fn decide(&self, probabilities: &[f32]) -> Vec<bool> {
        decide(probabilities, self.problem, &self.decision)
    }
}

/// Parameters of loading.
pub(super) struct Tools {
    pub(super) source: Source,
    pub(super) room: Arc<Room>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) open_device: OpenDevice,
    pub(super) console: Console,
    pub(super) batch_tokens: usize,
    pub(super) batch_wait: Duration,
}

/// The classifiers that are served.
pub(super) struct Models {
    served: RwLock<Vec<Arc<Served>>>,
    /// Held while classifiers come or go.
    changes: Mutex<Changes>,
    tools: Tools,
    is_ready: AtomicBool,
}

#[derive(Default)]
struct Changes {
    next_id: ModelId,
    bases: HashMap<String, Base>,
}

struct Base {
    queue: Arc<Queue<Order>>,
    thread: JoinHandle<()>,
    classifiers: usize,
}

impl Models {
    pub(super) fn new(tools: Tools) -> Self {
        Self { served: RwLock::default(), changes: Mutex::default(), tools, is_ready: AtomicBool::new(false) }
    }

    /// All, the one that requests without a name get first.
    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The classifier of a name; without one the first.
    pub(super) fn find(&self, name: Option<&str>) -> Option<Arc<Served>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.iter().find(|served| name.is_none_or(|name| served.info.name == name)).cloned()
    }

    /// Returns true if the classifiers of the command line are there, and the server does not end.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::SeqCst)
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::SeqCst);
    }

    /// Loads the classifier of a run under a name; one that has the name is replaced once the new one is ready.
    ///
    /// # Errors
    /// If it cannot be used; then nothing changes.
    pub(super) fn load(&self, name: &str, run: &Path) -> Result<ModelInfo> {
        check_name(name)?;
        let tools = &self.tools;
        let located = Located::find(run, &tools.source, tools.console)?;
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = located.base_key();
        let is_new = !changes.bases.contains_key(&key);
        if is_new {
            let queue = Arc::new(Queue::new(tools.batch_tokens, tools.batch_wait));
            let workshop = Workshop {
                queue: Arc::clone(&queue),
                room: Arc::clone(&tools.room),
                metrics: Arc::clone(&tools.metrics),
                open_device: Arc::clone(&tools.open_device),
                precision: tools.source.precision,
                maxima: located.maxima.clone(),
                console: tools.console,
            };
            let thread = compute::start(workshop, located.model.clone()).with_context(|| named(run))?;
            changes.bases.insert(key.clone(), Base { queue, thread, classifiers: 0 });
        }
        let served = self.attach(&mut changes, name, located, &key).with_context(|| named(run));
        if served.is_err() {
            changes.close_unused(&key);
        }
        let served = Arc::new(served?);
        let info = served.info.clone();
        let replaced = {
            let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
            match all.iter_mut().find(|other| other.info.name == name) {
                Some(other) => Some(std::mem::replace(other, served)),
                None => {
                    all.push(served);
                    None
                }
            }
        };
        if let Some(replaced) = replaced {
            changes.retire(&replaced);
        }
        self.count(&changes);
        Ok(info)
    }

    fn attach(&self, changes: &mut Changes, name: &str, located: Located, key: &str) -> Result<Served> {
        let id = changes.next_id;
        changes.next_id += 1;
        let base = changes.bases.get_mut(key).context("the base was dropped")?;
        let compute = located.compute();
        let Located { trained, file, is_of_a_run, .. } = located;
        let (reply, answer) = mpsc::sync_channel(1);
        let load = Box::new(Load { id, trained, file: file.clone(), is_of_a_run });
        if base.queue.order(Order::Load(load, reply)).is_err() {
            bail!("the thread of its base has ended");
        }
        let loaded = answer.recv().context("the thread of its base has died")??;
        base.classifiers += 1;
        let Loaded { reader, problem, adapter_bytes, base_bytes, device } = loaded;
        Ok(Served {
            id,
            reader,
            queue: Arc::clone(&base.queue),
            decision: Decision::above(&file.thresholds),
            problem,
            base_key: key.to_owned(),
            text_fields: file.text_fields,
            text_column: file.target_text_column,
            info: ModelInfo {
                name: name.to_owned(),
                labels: file.labels,
                thresholds: file.thresholds,
                problem_type: file.problem_type,
                max_length: file.max_length,
                base: file.base.name,
                revision: file.base.revision,
                commit: file.base.commit,
                torch_dtype: file.torch_dtype,
                compute,
                device,
                adapter_bytes,
                base_bytes,
            },
        })
    }

    /// Drops the classifier of a name; requests that wait for it are answered. Returns whether there was one.
    pub(super) fn remove(&self, name: &str) -> bool {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = {
            let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
            let index = all.iter().position(|served| served.info.name == name);
            index.map(|index| all.remove(index))
        };
        if let Some(removed) = &removed {
            changes.retire(removed);
        }
        self.count(&changes);
        removed.is_some()
    }

    fn count(&self, changes: &Changes) {
        let models = self.served.read().unwrap_or_else(PoisonError::into_inner).len();
        self.tools.metrics.models.set(models as i64);
        self.tools.metrics.bases.set(changes.bases.len() as i64);
    }

    /// Ends the threads once their jobs are done.
    pub(super) fn close(&self) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        for base in changes.bases.drain().map(|(_, base)| base) {
            base.queue.close();
            let _ = base.thread.join();
        }
    }
}

impl Changes {
    fn retire(&mut self, served: &Served) {
        let Some(base) = self.bases.get_mut(&served.base_key) else { return };
        let _ = base.queue.order(Order::Drop(served.id));
        base.classifiers -= 1;
        self.close_unused(&served.base_key);
    }

    /// Drops a base that no classifier uses; its thread ends after the jobs that wait.
    fn close_unused(&mut self, key: &str) {
        if self.bases.get(key).is_some_and(|base| base.classifiers == 0)
            && let Some(base) = self.bases.remove(key)
        {
            base.queue.close();
        }
    }
}

fn named(run: &Path) -> String {
    format!("{}: cannot be served", run.display())
}

/// Refuses a name that would not stand in a URL as it is.
fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ensure!(
        (1..=128).contains(&name.len()) && name.chars().all(is_plain) && name.starts_with(|c| c != '.'),
        "`{name}` cannot be a model's name: it takes 1 to 128 letters, digits, `-`, `_` and `.`, and no `.` in front"
    );
    Ok(())
}

/// Names for runs that have none: those of their data sets or directories.
///
/// # Errors
/// If two would be the same, or one is no name.
pub(super) fn name_runs(runs: &[(Option<String>, PathBuf)]) -> Result<Vec<(String, PathBuf)>> {
    let mut named = BTreeMap::new();
    let mut ordered = Vec::new();
    for (name, run) in runs {
        let name = name.clone().unwrap_or_else(|| default_name(run));
        check_name(&name).with_context(|| format!("--run {}: give it a name with --run NAME=RUN", run.display()))?;
        if let Some(other) = named.insert(name.clone(), run) {
            bail!(
                "--run: {} and {} would both be called `{name}`; give one another name with --run NAME=RUN",
                other.display(),
                run.display()
            );
        }
        ordered.push((name, run.clone()));
    }
    Ok(ordered)
}

/// The data set of a run, or the name of a directory, with what a name cannot hold replaced.
fn default_name(run: &Path) -> String {
    let path = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_run = |part: &String| part.starts_with("run_");
    let name = match parts.iter().rposition(is_run) {
        Some(at) if at > 0 => parts.get(at - 1),
        _ => parts.iter().rev().find(|part| *part != "best"),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.map(|name| name.chars().map(plain).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_their_data_sets_and_two_of_one_name_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("outputs/m/tickets/run_20260101-000000");
        let merged = root.path().join("my model");
        std::fs::create_dir_all(run.join("seed_1/best")).unwrap();
        std::fs::create_dir_all(&merged).unwrap();
        let names = |runs: &[(Option<String>, PathBuf)]| {
            Ok::<_, anyhow::Error>(name_runs(runs)?.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        let given = [(None, run.clone()), (Some("b".to_owned()), run.join("seed_1/best")), (None, merged)];
        assert_eq!(names(&given).unwrap(), ["tickets", "b", "my_model"]);
        let error = names(&[(None, run.clone()), (None, run.join("seed_1/best"))]).unwrap_err().to_string();
        assert!(error.contains("`tickets`") && error.contains("NAME=RUN"), "{error}");
        for wrong in ["", "a/b", "..", "a b", &"x".repeat(129)] {
            assert!(names(&[(Some(wrong.to_owned()), run.clone())]).is_err(), "{wrong}");
        }
    }
}
