//! `POST /predict` in the form of text-embeddings-inference.

use axum::extract::{Query, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::info::ModelQuery;
use crate::server::answer::{ErrorBody, Refusal};
use crate::server::app::{Answer, App, Row, TooLong};
use crate::server::body;

/// Texts to classify.
#[derive(Deserialize, ToSchema)]
pub(super) struct TeiBody {
    inputs: TeiInputs,
    /// Cut a text that is too long; without it the request is refused.
    truncate: Option<bool>,
    /// `right`; the model decides at which end a text is cut.
    truncation_direction: Option<String>,
    /// Logits in place of probabilities.
    #[serde(default)]
    raw_scores: bool,
    /// The name of a model; the first one without.
    model: Option<String>,
}

/// A text; a batch `[["a"], ["b"]]`; or a list of one, or of three or more, texts.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum TeiInputs {
    One(String),
    Batch(Vec<Vec<String>>),
    List(Vec<String>),
}

/// A label and its score.
#[derive(Serialize, ToSchema)]
pub(super) struct Score<'a> {
    /// A probability, or a logit with `raw_scores`.
    score: f32,
    label: &'a str,
}

/// Scores of one text, or of each text of a batch; the greatest first.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Scores<'a> {
    One(Vec<Score<'a>>),
    Batch(Vec<Vec<Score<'a>>>),
}

impl TeiInputs {
    /// The texts, and whether they are a batch.
    fn texts(self) -> Result<(Vec<String>, bool), Refusal> {
        let pair = |place: &str| {
            Refusal::invalid(format!(
                "{place} two strings are a pair of sentences, which no model here takes; write [[\"a\"], [\"b\"]] for two \
                 texts"
            ))
        };
        match self {
            Self::One(text) => Ok((vec![text], false)),
            Self::List(texts) if texts.len() == 2 => Err(pair("inputs:")),
            Self::List(texts) => Ok((texts, true)),
            Self::Batch(rows) => {
                let text = |(index, row): (usize, Vec<String>)| match <[String; 1]>::try_from(row) {
                    Ok([text]) => Ok(text),
                    Err(row) if row.len() == 2 => Err(pair(&format!("inputs[{index}]:"))),
                    Err(row) => {
                        Err(Refusal::invalid(format!("inputs[{index}] has {} strings, expected one", row.len())))
                    }
                };
                Ok((rows.into_iter().enumerate().map(text).collect::<Result<_, _>>()?, true))
            }
        }
    }
}

/// Scores of a row, the greatest first.
fn scores<'a>(answer: &'a Answer, row: &'a Row, is_raw: bool) -> Vec<Score<'a>> {
    let values = if is_raw { &row.scored.logits } else { &row.scored.probabilities };
    let labels = &answer.model.info.labels;
    let mut scores: Vec<Score<'_>> = labels.iter().zip(values).map(|(label, &score)| Score { score, label }).collect();
    scores.sort_by(|a, b| b.score.total_cmp(&a.score));
    scores
}

/// Classify texts, in the form of text-embeddings-inference
#[utoipa::path(
    post,
    path = "/predict",
    tag = "text-embeddings-inference",
    params(ModelQuery),
    request_body = TeiBody,
    responses(
        (status = 200, description = "Scores", body = Scores),
        (status = 413, description = "Too long or too many", body = ErrorBody),
        (status = 422, description = "JSON of another form", body = ErrorBody),
        (status = 429, description = "Busy", body = ErrorBody),
    )
)]
pub(super) async fn predict(
    State(app): State<App>,
    Query(query): Query<ModelQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let TeiBody { inputs, truncate, truncation_direction, raw_scores, model } = body::json(&app, request).await?;
    if truncation_direction.as_deref().is_some_and(|side| !side.eq_ignore_ascii_case("right")) {
        return Err(Refusal::invalid(
            "truncation_direction: the model decides at which end a text is cut; leave it out",
        ));
    }
    let too_long = match truncate {
        Some(true) => TooLong::Cut,
        _ => TooLong::Refuse("\"truncate\": true has it cut, as --auto_truncate has all"),
    };
    let (texts, is_batch) = inputs.texts()?;
    let answer = app.classify(model.or(query.model).as_deref(), texts, too_long).await?;
    let body = match answer.rows.as_slice() {
        [only] if !is_batch => Scores::One(scores(&answer, only, raw_scores)),
        rows => Scores::Batch(rows.iter().map(|row| scores(&answer, row, raw_scores)).collect()),
    };
    Ok(answer.respond(&body))
}
