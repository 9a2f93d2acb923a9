//! Copies of a classifier, each on a thread of its own, for predicting with small models. Their products are too short to
//! be divided among cores: whole batches side by side wait less for each other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rayon::ThreadPoolBuilder;

use crate::data::tokenize::Encoded;
use crate::device;
use crate::evaluation::{Evaluation, Sample, batch_numbers, collected, longest_first};
use crate::metrics::Decision;
use crate::model::classifier::Classifier;

/// Threads with a classifier each.
pub struct Crew {
    /// None once it is to end.
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// A batch to compute.
struct Job {
    texts: Vec<(Encoded, Vec<f32>)>,
    batch: usize,
    reply: mpsc::Sender<(usize, Result<Vec<f32>>)>,
}

impl Crew {
    /// Starts threads that each open the classifier.
    ///
    /// # Errors
    /// If one cannot.
    pub fn start(count: usize, open: impl Fn() -> Result<Classifier> + Send + Sync + 'static) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel();
        let (waiting, open) = (Arc::new(Mutex::new(waiting)), Arc::new(open));
        let (ready, is_ready) = mpsc::channel();
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let (waiting, open, ready) = (Arc::clone(&waiting), Arc::clone(&open), ready.clone());
            let body = move || {
                // What computes on this thread stays on it.
                let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                match pool.context("no thread to compute on").and_then(|pool| Ok((pool, open()?))) {
                    Ok((_pool, classifier)) => {
                        let _ = ready.send(Ok(()));
                        drop(ready);
                        work(&waiting, &classifier);
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            };
            threads.push(thread::Builder::new().name("crew".to_owned()).stack_size(device::STACK_BYTES).spawn(body)?);
        }
        drop(ready);
        let crew = Self { jobs: Some(jobs), threads };
        for _ in 0..count {
            is_ready.recv().context("a thread that opens the classifier has died")??;
        }
        Ok(crew)
    }

    /// Evaluates samples on all threads; the predictions are those of [`crate::evaluation::evaluate`] with `classifier`, of
    /// which the threads hold copies.
    ///
    /// # Errors
    /// If the model fails on a batch, or gives a sample a logit that is not finite.
    pub fn evaluate(
        &self,
        classifier: &Classifier,
        samples: &[Sample],
        decision: &Decision,
        batch_size: usize,
        on_batch: impl FnMut(usize),
    ) -> Result<Evaluation> {
        // Enough batches that the threads end together.
        let most = batch_size.min(samples.len().div_ceil(4 * self.threads.len())).max(1);
        let order = longest_first(samples);
        let batches = cut(&order, samples, most);
        let numbers = self.numbers(samples, &batches, on_batch)?;
        collected(classifier, samples, decision, (&batches, &[numbers]))
    }

    /// Each batch's mean loss and logits, as [`batch_numbers`] gives them, in the order of the batches, which are lists of
    /// samples. `on_batch` hears how many samples were done.
    ///
    /// # Errors
    /// If the model fails on a batch.
    fn numbers(&self, samples: &[Sample], batches: &[&[usize]], mut on_batch: impl FnMut(usize)) -> Result<Vec<f32>> {
        let jobs = self.jobs.as_ref().context("the threads have ended")?;
        let (reply, answers) = mpsc::channel();
        let mut numbers = vec![Vec::new(); batches.len()];
        let mut rest = batches.iter().enumerate();
        // Enough that none waits, and few to wait for if one fails.
        let mut asked = 0;
        for _ in 0..batches.len() {
            for (batch, indices) in rest.by_ref().take(2 * self.threads.len() - asked) {
                let text = |&index: &usize| (samples[index].tokens.clone(), samples[index].labels.clone());
                jobs.send(Job { texts: indices.iter().map(text).collect(), batch, reply: reply.clone() })?;
                asked += 1;
            }
            let (batch, result) = answers.recv().context("a thread that computes has died")?;
            asked -= 1;
            numbers[batch] = result?;
            on_batch(batches[batch].len());
        }
        Ok(numbers.concat())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Batches of at most `most` samples, as small as a core's cache wants them.
fn cut<'a>(mut order: &'a [usize], samples: &[Sample], most: usize) -> Vec<&'a [usize]> {
    /// Tokens of a batch. all-MiniLM-L6-v2 in int8 predicts 145 texts a second in batches of two, about 250 tokens, and 126
    /// in batches of eight, whose activations no longer fit a cache of 1 MiB.
    const TOKENS: usize = 256;
    let mut batches = Vec::new();
    while let Some(&first) = order.first() {
        let count = (TOKENS / samples[first].tokens.token_ids.len().max(1)).clamp(1, most).min(order.len());
        let (batch, rest) = order.split_at(count);
        batches.push(batch);
        order = rest;
    }
    batches
}

fn work(waiting: &Mutex<mpsc::Receiver<Job>>, classifier: &Classifier) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { texts, batch, reply }) = next else { return };
        let samples: Vec<Sample> =
            texts.into_iter().map(|(tokens, labels)| Sample { tokens, labels, frozen: None }).collect();
        let all: Vec<usize> = (0..samples.len()).collect();
        // An answer always comes: whoever asked waits for it.
        let numbers = catch_unwind(AssertUnwindSafe(|| batch_numbers(classifier, &samples, &all)));
        let numbers = numbers.unwrap_or_else(|_| bail!("a thread that computes has panicked; see the message above"));
        // Whoever asked may have given up.
        let _ = reply.send((batch, numbers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_few_tokens_and_no_more_texts_than_asked() {
        let sample = |length| Sample { tokens: Encoded::whole(vec![0; length]), labels: Vec::new(), frozen: None };
        let samples: Vec<Sample> = [700, 200, 120, 120, 50, 0, 0, 0, 0].map(sample).into_iter().collect();
        let order: Vec<usize> = (0..samples.len()).collect();
        let batches: Vec<usize> = cut(&order, &samples, 3).into_iter().map(<[usize]>::len).collect();
        assert_eq!(batches, [1, 1, 2, 3, 2]);
    }
}
