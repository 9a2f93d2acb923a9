//! Keeps what frozen layers make of texts: layers below the first adapter give the same numbers in every epoch.
//!
//! Texts stand in chunks of some megabytes, a file each, named by a hash of all that decides the numbers: the base's
//! weights and configuration, how it computes, how many layers are frozen, and the texts' token ids. So splits,
//! seeds, runs and changed data share what they have in common; chunks appear by a rename, so processes that fill
//! the same cache do not disturb each other.

mod chunk;
pub mod directory;

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use self::chunk::Shape;
use crate::atomic_file::hex;
use crate::cluster::{self, Group, Member};
use crate::console::{Console, ProgressMeter, bytes};
use crate::evaluation::Sample;
use crate::kernels::buffer::elements;
use crate::kernels::cpu::memory::Limits;
use crate::model::classifier::Classifier;

/// Bytes of a chunk: what is lost if the program is stopped, and held in memory at once.
const CHUNK_BYTES: usize = 32 << 20;
/// Tokens that are computed at once.
const BATCH_TOKENS: usize = 2048;

/// A cache of one base's frozen layers.
pub struct ActivationCache<'a> {
    /// Whose layers.
    pub classifier: &'a Classifier,
    /// What decides the numbers, beside the token ids.
    pub key: &'a str,
    /// Where chunks are kept; none: in memory.
    pub directory: Option<PathBuf>,
    /// The most bytes of all chunks in the directory.
    pub limit: u64,
    /// Of this machine, for chunks that cannot be kept in a file.
    pub memory: Option<Limits>,
    /// Where progress goes.
    pub console: Console,
}

/// Bytes that the frozen layers' output for samples takes.
#[must_use]
pub fn bytes_of(classifier: &Classifier, samples: &[Sample]) -> u64 {
    let rows: usize = samples.iter().map(|sample| rows_of(classifier, sample)).sum();
    4 * (rows * classifier.width()) as u64
}

fn rows_of(classifier: &Classifier, sample: &Sample) -> usize {
    if classifier.keeps_tokens() { sample.tokens.token_ids.len() } else { sample.tokens.window_count() }
}

impl ActivationCache<'_> {
    /// Gives every sample what the frozen layers make of it: from the directory, else computed, by all ranks together, and
    /// kept there. The ranks may see one directory, several or none.
    ///
    /// # Errors
    /// If the model fails, or the user wants to stop; chunks that are complete stay.
    pub fn fill(&self, splits: &mut [&mut [Sample]], group: &Group) -> Result<()> {
        let mut chunks = self.chunks(splits);
        let paths: Vec<PathBuf> = chunks.iter().filter_map(|chunk| chunk.path.clone()).collect();
        let known = self.load(&mut chunks)?;
        // What one of them lacks, all compute: so they stay together.
        let of_ranks: Vec<Vec<bool>> = group.gather(&chunks.iter().map(Chunk::is_filled).collect())?;
        let missing: Vec<&mut Chunk<'_>> = chunks
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| of_ranks.iter().any(|is_filled| !is_filled[*index]))
            .map(|(_, chunk)| chunk)
            .collect();
        if missing.is_empty() {
            self.console.say(format!("the frozen layers' output for all {known} texts is in the cache"));
            return Ok(());
        }
        let new: u64 = missing.iter().map(|chunk| 4 * chunk.shape.numbers() as u64).sum();
        if let Some(directory) = &self.directory {
            directory::make_room(directory.parent().unwrap_or(directory), self.limit.saturating_sub(new), &paths);
        }
        let rows = missing.iter().map(|chunk| chunk.samples.len()).sum();
        let mut bar = self.console.progress("frozen layers", rows, "texts");
        let mut keeper = Keeper::new(self);
        for chunk in missing {
            let numbers = self.compute(chunk, &mut bar, group)?;
            if group.is_leader() {
                keeper.keep(chunk, &numbers)?;
            }
            // From here on the file is there for those that see it.
            group.from_leader(|| Ok(()))?;
            if !group.is_leader() {
                self.load(std::slice::from_mut(chunk))?;
                if !chunk.is_filled() {
                    keeper.keep(chunk, &numbers)?;
                }
            }
            if group.gather(&keeper.is_full)?.iter().all(|&is_full| is_full) {
                break;
            }
        }
        bar.finish();
        Ok(())
    }

    fn chunks<'s>(&self, splits: &'s mut [&mut [Sample]]) -> Vec<Chunk<'s>> {
        let mut chunks = Vec::new();
        for split in splits {
            let mut rest = &mut **split;
            while !rest.is_empty() {
                let (mut count, mut size) = (0, 0);
                while count < rest.len() && (count == 0 || size < CHUNK_BYTES) {
                    size += 4 * rows_of(self.classifier, &rest[count]) * self.classifier.width();
                    count += 1;
                }
                let (samples, after) = rest.split_at_mut(count);
                chunks.push(self.chunk(samples));
                rest = after;
            }
        }
        chunks
    }

    fn chunk<'s>(&self, samples: &'s mut [Sample]) -> Chunk<'s> {
        let mut hash = Sha256::new_with_prefix(self.key);
        for sample in &*samples {
            hash.update((sample.tokens.token_ids.len() as u64).to_le_bytes());
            hash.update(bytemuck::cast_slice::<u32, u8>(&sample.tokens.token_ids));
            for &window in &sample.tokens.windows {
                hash.update((window as u64).to_le_bytes());
            }
        }
        let name = hex(&hash.finalize()[..16]);
        let rows = samples.iter().map(|sample| rows_of(self.classifier, sample)).collect();
        let path = self.directory.as_ref().map(|directory| directory.join(format!("{name}.{}", chunk::ENDING)));
        Chunk { samples, shape: Shape { rows, width: self.classifier.width() }, path }
    }

    /// Takes the chunks that are in the directory and whole; returns their texts.
    fn load(&self, chunks: &mut [Chunk<'_>]) -> Result<usize> {
        let mut texts = 0;
        for chunk in chunks.iter_mut().filter(|chunk| !chunk.is_filled()) {
            let Some(path) = chunk.path.clone().filter(|path| path.is_file()) else { continue };
            match chunk::read(&path, &chunk.shape) {
                Ok(buffer) => {
                    chunk.fill(&buffer);
                    directory::touch(&path);
                    texts += chunk.samples.len();
                }
                Err(error) => {
                    self.console.warn(format!("{}: {error:#}; it is computed again", path.display()));
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        self.check_sample(chunks)?;
        Ok(texts)
    }

    /// Computes one text that was in the cache again: whatever else has changed, its numbers must not have.
    fn check_sample(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let loaded = chunks.iter().flat_map(|chunk| &*chunk.samples).filter(|sample| sample.frozen.is_some());
        let Some(sample) = loaded.min_by_key(|sample| sample.tokens.token_ids.len()) else { return Ok(()) };
        let fresh = self.frozen(std::slice::from_ref(sample))?;
        let kept = sample.frozen.as_ref().map_or(&[][..], |frozen| frozen.numbers());
        if bytemuck::cast_slice::<f32, u32>(&fresh) == bytemuck::cast_slice::<f32, u32>(kept) {
            return Ok(());
        }
        self.console
            .warn("the cache of the frozen layers' output has other numbers than they give now: it is made anew");
        for chunk in chunks {
            if let Some(path) = chunk.path.as_ref().filter(|_| chunk.is_filled()) {
                let _ = std::fs::remove_file(path);
            }
            chunk.samples.iter_mut().for_each(|sample| sample.frozen = None);
        }
        Ok(())
    }

    /// The numbers of a chunk. The ranks compute its batches in turn, and have all of them afterwards.
    fn compute(&self, chunk: &Chunk<'_>, bar: &mut ProgressMeter, group: &Group) -> Result<Vec<f32>> {
        let batches = batches(chunk.samples);
        let mut numbers = Vec::with_capacity(chunk.shape.numbers());
        for round in batches.chunks(group.size()) {
            // All ranks stop in the same round, or none.
            group.check_interrupt()?;
            let own = round.get(group.rank()).map(|batch| self.frozen(&chunk.samples[batch.clone()])).transpose()?;
            let own = bytemuck::cast_slice(&own.unwrap_or_default()).to_vec();
            for part in group.gather_bytes(own) {
                numbers.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&part));
            }
            round.iter().for_each(|batch| bar.advance(batch.len(), String::new));
        }
        ensure!(numbers.len() == chunk.shape.numbers(), "{} numbers of frozen layers", numbers.len());
        Ok(numbers)
    }

    fn frozen(&self, samples: &[Sample]) -> Result<Vec<f32>> {
        let batch = Sample::batch(samples.iter(), self.classifier)?;
        Ok(elements(&self.classifier.frozen_output(&batch)?)?.to_vec())
    }
}

/// Samples that are computed at once, of [`BATCH_TOKENS`] at most if they are several.
fn batches(samples: &[Sample]) -> Vec<Range<usize>> {
    let (mut batches, mut tokens) = (Vec::<Range<usize>>::new(), 0);
    for (index, sample) in samples.iter().enumerate() {
        tokens += sample.tokens.token_ids.len();
        match batches.last_mut() {
            Some(batch) if tokens <= BATCH_TOKENS => batch.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                tokens = sample.tokens.token_ids.len();
            }
        }
    }
    batches
}

/// Samples that are kept together.
struct Chunk<'s> {
    samples: &'s mut [Sample],
    shape: Shape,
    path: Option<PathBuf>,
}

impl Chunk<'_> {
    fn is_filled(&self) -> bool {
        self.samples.iter().all(|sample| sample.frozen.is_some())
    }

    fn fill(&mut self, buffer: &chunk::Numbers) {
        for (sample, rows) in self.samples.iter_mut().zip(self.shape.split(buffer)) {
            sample.frozen = Some(rows);
        }
    }
}

/// Keeps new chunks in files, after the first that cannot be written in memory, and none where that is short.
struct Keeper<'a> {
    cache: &'a ActivationCache<'a>,
    directory: Option<&'a Path>,
    in_memory: u64,
    /// Of what is free on this machine, this process's part.
    memory: Option<u64>,
    is_full: bool,
}

impl<'a> Keeper<'a> {
    fn new(cache: &'a ActivationCache<'a>) -> Self {
        let (ranks, _) = cluster::member().map_or((1, 0), Member::on_this_host);
        let memory = cache.memory.map(|limits| limits.available / 2 / ranks as u64);
        Self { cache, directory: cache.directory.as_deref(), in_memory: 0, memory, is_full: false }
    }

    /// Keeps a chunk, unless the memory is full.
    fn keep(&mut self, chunk: &mut Chunk<'_>, numbers: &[f32]) -> Result<()> {
        if let (Some(directory), Some(path)) = (self.directory, &chunk.path) {
            let written = std::fs::create_dir_all(directory)
                .map_err(anyhow::Error::from)
                .and_then(|()| chunk::write(path, &chunk.shape, numbers))
                .and_then(|()| chunk::read(path, &chunk.shape));
            match written {
                Ok(buffer) => {
                    chunk.fill(&buffer);
                    return Ok(());
                }
                Err(error) => {
                    self.directory = None;
                    self.cache.console.warn(format!(
                        "the frozen layers' output is kept in memory: {error:#}; XDG_CACHE_HOME names another place for \
                         the cache, train.cache_limit=0 switches it off"
                    ));
                }
            }
        }
        let bytes_of_chunk = 4 * numbers.len() as u64;
        if !self.is_full && self.memory.is_some_and(|memory| self.in_memory + bytes_of_chunk > memory) {
            self.is_full = true;
            self.cache.console.warn(format!(
                "{} of the frozen layers' output fill half of the free memory: the rest is computed in every pass",
                bytes(self.in_memory)
            ));
        }
        if !self.is_full {
            self.in_memory += bytes_of_chunk;
            chunk.fill(&chunk::owned(numbers.to_vec()));
        }
        Ok(())
    }
}
