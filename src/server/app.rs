//! From texts to probabilities: what every route that classifies does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;

use super::answer::{Facts, Refusal};
use super::log::Log;
use super::metrics::Metrics;
use super::models::{Models, Served};
use super::queue::{Chooser, Done, Failure, Job, Place, Room};
use super::settings::{Access, Limits};
use crate::data::tokenize::Encoded;
use crate::evaluation::Scored;
use crate::experiment::why::explained;
use crate::run::records::Why;

/// State shared by the handlers.
#[derive(Clone)]
pub(super) struct App(pub(super) Arc<Shared>);

/// State shared by the handlers.
pub(super) struct Shared {
    pub(super) models: Models,
    pub(super) room: Arc<Room>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
    pub(super) access: Access,
    pub(super) log: Log,
    /// Bytes of bodies that are being read.
    pub(super) buffered: AtomicUsize,
    /// Turns to tokenize, one a core: a tokenizer keeps some memory for each thread that ever used it at once.
    pub(super) turns: Semaphore,
}

/// Treatment of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLong {
    /// It is cut, as `predict` does; the answer says so.
    Cut,
    /// The request is refused; the advice says how to have it cut.
    Refuse(&'static str),
}

/// Results of a request's texts, in their order.
pub(super) struct Answer {
    pub(super) model: Arc<Served>,
    pub(super) rows: Vec<Row>,
    facts: Facts,
}

/// The result of one text.
pub(super) struct Row {
    pub(super) scored: Scored,
    pub(super) tokens: usize,
    pub(super) was_cut: bool,
    /// Which words weighed, if that was asked for.
    pub(super) why: Option<Vec<Why>>,
}

impl Row {
    /// The place of the most likely label.
    pub(super) fn most_likely(&self) -> usize {
        let mut best = 0;
        for (index, probability) in self.scored.probabilities.iter().enumerate() {
            if *probability > self.scored.probabilities[best] {
                best = index;
            }
        }
        best
    }
}

impl Answer {
    /// The labels that are predicted for a row.
    pub(super) fn predicted(&self, row: &Row) -> Vec<&str> {
        let is_set = self.model.decide(&row.scored.probabilities);
        let labels = self.model.info.labels.iter().zip(is_set);
        labels.filter(|(_, is_set)| *is_set).map(|(label, _)| label.as_str()).collect()
    }

    /// Tokens of all texts.
    pub(super) fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens).sum()
    }

    /// A JSON body, and for the log what it is of.
    pub(super) fn respond(&self, body: &impl Serialize) -> Response {
        self.with_facts(Json(body).into_response())
    }

    pub(super) fn with_facts(&self, mut response: Response) -> Response {
        response.extensions_mut().insert(self.facts.clone());
        response
    }
}

impl App {
    /// The classifier that a request means.
    pub(super) fn model(&self, name: Option<&str>) -> Result<Arc<Served>, Refusal> {
        if !self.0.models.is_ready() {
            return Err(Refusal::not_ready());
        }
        self.0.models.find(name).ok_or_else(|| match name {
            Some(name) => {
                let known: Vec<String> = self.0.models.all().iter().map(|served| served.info.name.clone()).collect();
                Refusal::not_found(format!("there is no model `{name}`; there are {}", known.join(", ")))
            }
            None => Refusal::not_found("no model is loaded"),
        })
    }

    /// Classifies texts.
    pub(super) async fn classify(
        &self,
        name: Option<&str>,
        texts: Vec<String>,
        too_long: TooLong,
    ) -> Result<Answer, Refusal> {
        self.answered(name, texts, (too_long, false)).await
    }

    /// Classifies one text, and says which words weighed: as much work as some dozens of texts.
    pub(super) async fn explain(&self, name: Option<&str>, texts: Vec<String>) -> Result<Answer, Refusal> {
        if texts.len() != 1 {
            return Err(Refusal::invalid(format!(
                "`explain` is for one text at a time, and there are {}; send a request for each",
                texts.len()
            )));
        }
        self.answered(name, texts, (TooLong::Cut, true)).await
    }

    async fn answered(
        &self,
        name: Option<&str>,
        texts: Vec<String>,
        (too_long, explains): (TooLong, bool),
    ) -> Result<Answer, Refusal> {
        let Limits { texts: most, cuts, .. } = self.0.limits;
        if texts.is_empty() {
            return Err(Refusal::invalid("there are no texts"));
        }
        if texts.len() > most {
            return Err(Refusal::too_large(format!(
                "the request has {} texts, and {most} are taken at once; send several requests",
                texts.len()
            )));
        }
        let too_long = if cuts { TooLong::Cut } else { too_long };
        let texts: Arc<[String]> = texts.into();
        // A classifier that is replaced meanwhile has a successor of the same name.
        for _ in 0..3 {
            let model = self.model(name)?;
            let place = self.place(texts.len())?;
            let encoded = self.read(&model, Arc::clone(&texts), too_long).await?;
            match self.submit(&model, Arc::clone(&encoded), place, explains).await {
                Ok(done) => return self.answer(model, &encoded, done, &texts),
                Err(Failure::Gone) => {}
                Err(Failure::Failed(message)) => return Err(Refusal::failed(message)),
            }
        }
        Err(Refusal::not_ready())
    }

    fn place(&self, texts: usize) -> Result<Place, Refusal> {
        let room = &self.0.room;
        room.place(texts).ok_or_else(|| {
            let advice = if texts > room.most() { "send fewer texts at once" } else { "come again later" };
            Refusal::busy(format!("{} of {} texts wait; {advice}", room.texts(), room.most()), room.retry_after())
        })
    }

    /// The tokens of texts, within the limits.
    async fn read(
        &self,
        model: &Arc<Served>,
        texts: Arc<[String]>,
        too_long: TooLong,
    ) -> Result<Arc<[Encoded]>, Refusal> {
        let reader = model.reader.clone();
        let most = self.0.limits.tokens;
        let turn = self.0.turns.acquire().await.map_err(|_| Refusal::failed("nobody tokenizes any more"))?;
        let read = spawn_blocking(move || -> anyhow::Result<Result<Vec<Encoded>, usize>> {
            let (mut encoded, mut tokens) = (Vec::with_capacity(texts.len()), 0);
            for text in texts.iter() {
                encoded.push(reader.read(text)?);
                tokens += encoded.last().map_or(0, |text| text.token_ids.len());
                if tokens > most {
                    return Ok(Err(encoded.len()));
                }
            }
            Ok(Ok(encoded))
        });
        let encoded = read.await.map_err(|_| Refusal::failed("the tokenizer has panicked"))?;
        drop(turn);
        let encoded = encoded.map_err(|error| Refusal::invalid(format!("{error:#}")))?.map_err(|texts| {
            Refusal::too_large(format!(
                "the first {texts} texts have more than {most} tokens, and no more are taken at once; send several requests"
            ))
        })?;
        if let (TooLong::Refuse(advice), Some(index)) = (too_long, encoded.iter().position(|text| text.was_cut)) {
            return Err(Refusal::too_large(format!(
                "text {} has more than {} tokens, the most that the model takes; {advice}",
                index + 1,
                model.info.max_length
            )));
        }
        Ok(encoded.into())
    }

    async fn submit(
        &self,
        model: &Arc<Served>,
        texts: Arc<[Encoded]>,
        mut place: Place,
        explains: bool,
    ) -> Result<Done, Failure> {
        place.fill(texts.iter().map(|text| text.token_ids.len()).sum());
        let (reply, answer) = oneshot::channel();
        let rows = Vec::with_capacity(texts.len());
        let chooser = |model: Arc<Served>| -> Chooser { Arc::new(move |row| explained(&model.decide(row), row)) };
        let explains = explains.then(|| chooser(Arc::clone(model)));
        let (explained, since, waited) = (Vec::new(), Instant::now(), None);
        model.queue.push(Job { model: model.id, texts, rows, explains, explained, reply, since, waited, place });
        // Dropped with this future when the client goes: the queue sees it.
        answer.await.unwrap_or(Err(Failure::Gone))
    }

    fn answer(&self, model: Arc<Served>, encoded: &[Encoded], done: Done, texts: &[String]) -> Result<Answer, Refusal> {
        let Done { rows, explained, waited } = done;
        let mut explained = explained.into_iter();
        let mut row = |(scored, (text, given)): (Scored, (&Encoded, &String))| -> anyhow::Result<Row> {
            let why =
                explained.next().map(|weights| model.reader.why(given, &model.info.labels, &weights)).transpose()?;
            Ok(Row { scored, tokens: text.token_ids.len(), was_cut: text.was_cut, why })
        };
        let rows = rows.into_iter().zip(encoded.iter().zip(texts)).map(&mut row).collect::<anyhow::Result<Vec<Row>>>();
        let rows = rows.map_err(|error| Refusal::failed(format!("{error:#}")))?;
        let tokens = rows.iter().map(|row| row.tokens).sum();
        self.0.metrics.classified(&model.info.name, rows.len(), tokens, waited);
        let logged_texts = if self.0.log.settings.has_texts { texts.to_vec() } else { Vec::new() };
        let facts = Facts { kind: None, model: Some(model.info.name.clone()), texts: rows.len(), tokens, logged_texts };
        Ok(Answer { model, rows, facts })
    }

    /// Counts bytes of a body that is being read, until the guard is dropped.
    pub(super) fn buffered(&self) -> Buffered {
        Buffered { app: self.clone(), bytes: 0 }
    }
}

/// Bytes of a body that is being read.
pub(super) struct Buffered {
    app: App,
    bytes: usize,
}

impl Buffered {
    /// Adds bytes; whether there is room for them.
    pub(super) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let before = self.app.0.buffered.fetch_add(bytes, Ordering::SeqCst);
        before + bytes <= self.app.0.limits.buffered_bytes
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.app.0.buffered.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}
