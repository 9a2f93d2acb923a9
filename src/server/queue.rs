//! The one way from requests to the thread that computes: jobs in, batches out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::data::tokenize::Encoded;
use crate::evaluation::Scored;
use crate::model::attributions::Attribution;

/// A classifier's number; no two have the same, whatever their names.
pub(super) type ModelId = u64;

/// Why a job has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The classifier was dropped.
    Gone,
    /// The model failed.
    Failed(String),
}

/// Labels to explain, from a text's probabilities.
pub(super) type Chooser = Arc<dyn Fn(&[f32]) -> Vec<usize> + Send + Sync>;

/// The result of a job: its rows, its time in the queue, and its time of computing.
pub(super) struct Done {
    pub(super) rows: Vec<Scored>,
    /// One a text, if explanations were asked for.
    pub(super) explained: Vec<Vec<Attribution>>,
    pub(super) waited: Duration,
}

/// The texts of a request.
pub(super) struct Job {
    pub(super) model: ModelId,
    pub(super) texts: Arc<[Encoded]>,
    /// The results of the first texts.
    pub(super) rows: Vec<Scored>,
    /// Says which labels are explained, if any: by their probabilities.
    pub(super) explains: Option<Chooser>,
    /// Of the first texts.
    pub(super) explained: Vec<Vec<Attribution>>,
    pub(super) reply: oneshot::Sender<Result<Done, Failure>>,
    pub(super) since: Instant,
    /// Time before its first batch.
    pub(super) waited: Option<Duration>,
    pub(super) place: Place,
}

impl Job {
    fn tokens_of(&self, index: usize) -> Option<usize> {
        self.texts.get(self.rows.len() + index).map(|text| text.token_ids.len())
    }
}

/// A job and how many of its texts are in a batch.
pub(super) struct Taken {
    pub(super) job: Job,
    pub(super) count: usize,
}

/// The thread's next task.
pub(super) enum Next<O> {
    Order(O),
    Batch(Vec<Taken>),
    End,
}

/// Jobs and orders for one thread.
pub(super) struct Queue<O> {
    state: Mutex<State<O>>,
    wake: Condvar,
    batch_tokens: usize,
    batch_wait: Duration,
}

struct State<O> {
    jobs: VecDeque<Job>,
    orders: VecDeque<O>,
    is_closed: bool,
    /// Jobs whose client had gone before they were computed.
    abandoned: u64,
}

impl<O> Queue<O> {
    pub(super) fn new(batch_tokens: usize, batch_wait: Duration) -> Self {
        let state = State { jobs: VecDeque::new(), orders: VecDeque::new(), is_closed: false, abandoned: 0 };
        Self { state: Mutex::new(state), wake: Condvar::new(), batch_tokens, batch_wait }
    }

    fn lock(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job, unless the thread has ended.
    pub(super) fn push(&self, job: Job) {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            let _ = job.reply.send(Err(Failure::Gone));
            return;
        }
        state.jobs.push_back(job);
        self.wake.notify_one();
    }

    /// Puts back jobs whose texts did not all fit into a batch: behind the others, so that a large request does not
    /// keep small ones waiting.
    pub(super) fn put_back(&self, jobs: impl IntoIterator<Item = Job>) {
        self.lock().jobs.extend(jobs);
    }

    /// Adds an order, which goes before all jobs. Returns it if the thread has ended.
    pub(super) fn order(&self, order: O) -> Result<(), O> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(order);
        }
        state.orders.push_back(order);
        self.wake.notify_one();
        Ok(())
    }

    /// Lets the thread end once all jobs are done.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_one();
    }

    /// Returns true if a job of a classifier waits.
    pub(super) fn has_jobs_of(&self, model: ModelId) -> bool {
        self.lock().jobs.iter().any(|job| job.model == model)
    }

    /// The number of jobs that were dropped because nobody waited for them any more, since the last call.
    pub(super) fn take_abandoned(&self) -> u64 {
        std::mem::take(&mut self.lock().abandoned)
    }

    /// Waits for something to do.
    pub(super) fn next(&self) -> Next<O> {
        let mut state = self.lock();
        loop {
            let before = state.jobs.len();
            state.jobs.retain(|job| !job.reply.is_closed());
            state.abandoned += (before - state.jobs.len()) as u64;
            if let Some(order) = state.orders.pop_front() {
                return Next::Order(order);
            }
            let Some(oldest) = state.jobs.iter().map(|job| job.since).min() else {
                if state.is_closed {
                    return Next::End;
                }
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = self.batch_wait.saturating_sub(oldest.elapsed());
            if left.is_zero() || state.is_closed || self.is_full(&state.jobs) {
                return Next::Batch(take_batch(&mut state.jobs, self.batch_tokens));
            }
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_full(&self, jobs: &VecDeque<Job>) -> bool {
        let waiting = |job: &Job| job.texts[job.rows.len()..].iter().map(|text| text.token_ids.len()).sum::<usize>();
        jobs.iter().map(waiting).sum::<usize>() >= self.batch_tokens
    }
}

/// Takes texts of at most `budget` tokens, at least one: one of each job in turn, the oldest first, then more of each.
fn take_batch(jobs: &mut VecDeque<Job>, budget: usize) -> Vec<Taken> {
    let mut taken: Vec<Taken> = Vec::new();
    let mut used = 0;
    while let Some(tokens) = jobs.front().and_then(|job| job.tokens_of(0)) {
        if !taken.is_empty() && used + tokens > budget {
            break;
        }
        used += tokens;
        taken.extend(jobs.pop_front().map(|job| Taken { job, count: 1 }));
    }
    loop {
        let before = used;
        for Taken { job, count } in &mut taken {
            if let Some(tokens) = job.tokens_of(*count).filter(|tokens| used + tokens <= budget) {
                used += tokens;
                *count += 1;
            }
        }
        if used == before {
            return taken;
        }
    }
}

/// The texts of all requests that wait or are in work, of at most so many.
pub(super) struct Room {
    most: usize,
    texts: AtomicUsize,
    tokens: AtomicUsize,
    /// Tokens a second, as bits of an f64.
    rate: AtomicU64,
}

/// A place for some texts, until it is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    texts: usize,
    tokens: usize,
}

impl Room {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, texts: AtomicUsize::new(0), tokens: AtomicUsize::new(0), rate: AtomicU64::new(0) })
    }

    /// A place for some texts, if there is room.
    pub(super) fn place(self: &Arc<Self>, texts: usize) -> Option<Place> {
        let add = |now: usize| now.checked_add(texts).filter(|sum| *sum <= self.most);
        self.texts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok()?;
        Some(Place { room: Arc::clone(self), texts, tokens: 0 })
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn texts(&self) -> usize {
        self.texts.load(Ordering::Relaxed)
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Hears how long a batch took.
    pub(super) fn measured(&self, tokens: usize, took: Duration) {
        const WEIGHT: f64 = 0.2;
        let now = tokens as f64 / took.as_secs_f64().max(1e-6);
        let before = f64::from_bits(self.rate.load(Ordering::Relaxed));
        let rate = if before > 0.0 { before + WEIGHT * (now - before) } else { now };
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Seconds until about half of what waits is done: from 1 to 60.
    pub(super) fn retry_after(&self) -> u64 {
        let rate = f64::from_bits(self.rate.load(Ordering::Relaxed));
        if rate <= 0.0 { 1 } else { ((self.tokens() as f64 / 2.0 / rate).ceil() as u64).clamp(1, 60) }
    }
}

impl Place {
    /// Says how many tokens the texts have.
    pub(super) fn fill(&mut self, tokens: usize) {
        self.room.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.tokens += tokens;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.texts.fetch_sub(self.texts, Ordering::SeqCst);
        self.room.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reply = oneshot::Receiver<Result<Done, Failure>>;

    fn job(model: ModelId, lengths: &[usize], room: &Arc<Room>) -> (Job, Reply) {
        let (reply, receiver) = oneshot::channel();
        let texts = lengths.iter().map(|&n| Encoded::whole(vec![1; n])).collect();
        let place = room.place(lengths.len()).unwrap();
        (
            Job {
                model,
                texts,
                rows: Vec::new(),
                explains: None,
                explained: Vec::new(),
                reply,
                since: Instant::now(),
                waited: None,
                place,
            },
            receiver,
        )
    }

    fn batch(queue: &Queue<()>) -> Vec<(ModelId, usize)> {
        match queue.next() {
            Next::Batch(taken) => taken.iter().map(|taken| (taken.job.model, taken.count)).collect(),
            _ => panic!("expected a batch"),
        }
    }

    #[test]
    fn a_batch_takes_one_text_of_each_job_before_it_takes_more_of_one() {
        let room = Room::new(100);
        let queue = Queue::new(20, Duration::ZERO);
        let (large, _large) = job(1, &[5; 10], &room);
        let (small, _small) = job(2, &[5], &room);
        queue.push(large);
        queue.push(small);
        let Next::Batch(mut taken) = queue.next() else { panic!("expected a batch") };
        assert_eq!(taken.iter().map(|taken| taken.count).collect::<Vec<_>>(), [3, 1]);
        let mut large = taken.remove(0).job;
        let scored = Scored { logits: Vec::new(), probabilities: Vec::new() };
        large.rows = vec![scored; 3];
        // A job that came meanwhile goes first, and one text goes in whatever the budget.
        let (long, _long) = job(3, &[50], &room);
        queue.push(long);
        queue.put_back([large]);
        assert_eq!(batch(&queue), [(3, 1)]);
        assert_eq!(batch(&queue), [(1, 4)]);
    }

    #[test]
    fn a_job_whose_client_has_gone_is_dropped_and_leaves_its_place() {
        let room = Room::new(3);
        let queue = Queue::new(20, Duration::ZERO);
        let (gone, receiver) = job(1, &[5, 5], &room);
        let (kept, _kept) = job(2, &[5], &room);
        queue.push(gone);
        queue.push(kept);
        assert!(room.place(1).is_none());
        drop(receiver);
        assert_eq!(batch(&queue), [(2, 1)]);
        assert_eq!((queue.take_abandoned(), room.texts()), (1, 0));
    }

    #[test]
    fn a_batch_waits_for_more_no_longer_than_asked_and_not_if_it_is_full() {
        let room = Room::new(100);
        let queue = Queue::new(20, Duration::from_millis(80));
        let (one, _one) = job(1, &[5], &room);
        queue.push(one);
        let begin = Instant::now();
        assert_eq!(batch(&queue), [(1, 1)]);
        assert!((70..2000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
        let queue = Queue::new(20, Duration::from_secs(100));
        let (full, _full) = job(1, &[5; 4], &room);
        queue.push(full);
        assert_eq!(batch(&queue), [(1, 4)]);
    }

    #[test]
    fn after_the_end_jobs_are_refused_and_what_waits_is_done_before() {
        let room = Room::new(100);
        let queue = Queue::new(20, Duration::from_secs(100));
        let (one, _one) = job(1, &[5], &room);
        queue.push(one);
        queue.close();
        assert_eq!(batch(&queue), [(1, 1)]);
        assert!(matches!(queue.next(), Next::End));
        let (late, mut receiver) = job(1, &[5], &room);
        queue.push(late);
        assert!(matches!(receiver.try_recv(), Ok(Err(Failure::Gone))));
        assert!(queue.order(()).is_err());
    }

    #[test]
    fn the_advice_to_come_again_follows_the_speed() {
        let room = Room::new(100);
        assert_eq!(room.retry_after(), 1);
        let mut place = room.place(1).unwrap();
        place.fill(9000);
        room.measured(300, Duration::from_secs(1));
        assert_eq!(room.retry_after(), 15);
        drop(place);
        assert_eq!((room.retry_after(), room.tokens()), (1, 0));
    }
}
